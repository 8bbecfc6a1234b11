//! A text becomes a folder, the folder is read back, and whatever is damaged is named.

use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
};

use templar_data::{
    Dataset, Grammar, Manifest, OpenError, PrepareError, PrepareOptions, ReadError, SourceError, Split, TokenizerError,
    TokenizerId, VerifyError, dataset, prepare, prepare_text, shard_files, store_object,
};

const TINY_TOKENIZER: &str = r#"{"version": "1.0", "truncation": null, "padding": null, "normalizer": null,
    "pre_tokenizer": null, "post_processor": null, "decoder": null,
    "added_tokens": [{"id": 70000, "content": "</s>", "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": true}],
    "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
        "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
        "vocab": {"a": 0, "b": 69999, "ab": 2, "\n": 3, "</s>": 70000}, "merges": ["a b"]}}"#;

fn small() -> PrepareOptions {
    PrepareOptions { seq_len: 32, shard_samples: 100, seed: 5, ..PrepareOptions::default() }
}

fn corpus() -> impl Iterator<Item = String> {
    Grammar::new(1).documents(1, 60_000)
}

fn prepared(dir: &Path) -> Manifest {
    prepare_text(corpus(), dir, &small(), &mut |_| ()).expect("the corpus is long enough")
}

/// All stored tokens of a split.
fn tokens(dataset: &Dataset, split: Split) -> Vec<u32> {
    (0..dataset.samples(split)).flat_map(|index| dataset.sample(split, index).expect("in range")).collect()
}

#[test]
fn text_comes_back_and_no_line_is_on_both_sides() {
    let folder = tempfile::tempdir().unwrap();
    let manifest = prepared(folder.path());
    let dataset = Dataset::open(folder.path()).unwrap();
    assert_eq!(dataset.manifest(), &manifest);
    let mut verified = 0;
    dataset.verify(&mut |bytes| verified += bytes).unwrap();
    assert_eq!(verified, dataset.shard_bytes());
    assert!(manifest.train.shards.len() > 10 && manifest.train.shards.iter().all(|shard| shard.samples <= 100));

    let text: String = corpus().collect();
    let (train, held_out) = (&manifest.train, &manifest.held_out);
    assert_eq!(train.text_bytes + held_out.text_bytes, text.len() as u64);
    let fraction = held_out.text_bytes as f64 / text.len() as f64;
    assert!((0.03..0.07).contains(&fraction), "{fraction}");
    assert!((0.98..1.0).contains(&manifest.bytes_per_token(Split::HeldOut)));

    let tokenizer = dataset.tokenizer().unwrap();
    let source: HashSet<&str> = text.lines().collect();
    let mut lines = [HashSet::new(), HashSet::new()];
    for (split, lines) in [Split::Train, Split::HeldOut].into_iter().zip(&mut lines) {
        let decoded = tokenizer.decode(&tokens(&dataset, split));
        let whole = decoded.rfind('\n').unwrap();
        lines.extend(decoded[..whole].lines().map(str::to_owned));
        assert!(lines.iter().all(|line| source.contains(line.as_str())));
    }
    assert!(lines[0].is_disjoint(&lines[1]) && lines[0].len() > 1000 && lines[1].len() > 30);
}

#[test]
fn the_same_text_gives_the_same_bytes_however_it_arrives() {
    let folder = tempfile::tempdir().unwrap();
    let first = prepared(&folder.path().join("memory"));
    assert_eq!(prepared(&folder.path().join("again")), first);
    assert_eq!(first.hash().to_string(), "193b90dce7c8dfae17ab19377228ec6302f00b1d4f4a2f74b0d27f1d6e03bc79");
    assert_eq!(Manifest::from_bytes(&first.to_bytes()).unwrap(), first);

    // One JSON line a document, in two files and a folder.
    let lines: Vec<_> = corpus().map(|text| format!("{{\"id\": 1, \"text\": {text:?}}}\n")).collect();
    let sources = folder.path().join("sources");
    fs::create_dir(&sources).unwrap();
    fs::write(sources.join("a.jsonl"), lines[..5].concat()).unwrap();
    fs::write(sources.join("b.jsonl"), lines[5..].concat()).unwrap();
    let mut last = None;
    let from_files =
        prepare(&[sources], &folder.path().join("files"), &small(), &mut |progress| last = Some(progress)).unwrap();
    assert_eq!(from_files, first);
    assert_eq!(last.unwrap().text_bytes, first.train.text_bytes + first.held_out.text_bytes);

    let other = PrepareOptions { seed: 6, ..small() };
    let other = prepare_text(corpus(), &folder.path().join("other"), &other, &mut |_| ()).unwrap();
    assert_ne!(other.held_out.shards, first.held_out.shards);
}

#[test]
fn long_files_are_streamed_and_cut_at_lines() {
    let folder = tempfile::tempdir().unwrap();
    let book: String = Grammar::new(1).documents(3, 3_000_000).collect();
    let path = folder.path().join("book");
    fs::write(&path, &book).unwrap();
    let out = folder.path().join("out");
    let options = PrepareOptions { seed: 1, ..PrepareOptions::default() };
    let manifest = prepare(&[path], &out, &options, &mut |_| ()).unwrap();
    assert_eq!(manifest.train.text_bytes + manifest.held_out.text_bytes, book.len() as u64);
    let dataset = Dataset::open(&out).unwrap();
    let held_out = dataset.tokenizer().unwrap().decode(&tokens(&dataset, Split::HeldOut));
    let ends = tokens(&dataset, Split::HeldOut).iter().filter(|&&token| token == 256).count();
    // 16 KiB segments: 5 % of 3 MB are nine or ten of them, nearly all with an end of their own.
    assert!((7..=10).contains(&ends), "{ends}");
    let whole = &held_out[..=held_out.rfind('\n').unwrap()];
    Grammar::new(1).bits(whole).expect("every cut is between sentences");
}

#[test]
fn damage_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    let manifest = prepared(dir);
    let shard = dir.join(shard_files(&manifest)[0].0.as_str());
    let good = fs::read(&shard).unwrap();

    let mut damaged = good.clone();
    damaged[7] ^= 1;
    fs::write(&shard, &damaged).unwrap();
    let dataset = Dataset::open(dir).unwrap();
    assert!(matches!(dataset.verify(&mut |_| ()), Err(VerifyError::Shard { path, .. }) if path == shard));
    // A high byte makes the token larger than the vocabulary: found by reading alone.
    let error = ReadError::Token { split: Split::Train, index: 0, token: 256 + u32::from(good[6]), vocab_size: 257 };
    assert_eq!(dataset.sample(Split::Train, 0).unwrap_err(), error);
    let samples = dataset.samples(Split::Train);
    assert!(matches!(dataset.sample(Split::Train, samples), Err(ReadError::OutOfRange { .. })));
    assert!(matches!(dataset.sample(Split::HeldOut, u64::MAX), Err(ReadError::OutOfRange { .. })));
    drop(dataset);

    fs::write(&shard, &good[..good.len() - 1]).unwrap();
    assert!(matches!(Dataset::open(dir), Err(OpenError::Size { .. })));
    fs::write(&shard, []).unwrap();
    assert!(matches!(Dataset::open(dir), Err(OpenError::Size { found: 0, .. })));
    fs::remove_file(&shard).unwrap();
    assert!(matches!(Dataset::open(dir), Err(OpenError::Io { .. })));
    fs::write(&shard, &good).unwrap();

    let mut wrong_root = manifest.clone();
    wrong_root.train.shards[0].root.0[0] ^= 1;
    fs::write(dir.join("manifest"), wrong_root.to_bytes()).unwrap();
    let error = Dataset::open(dir).unwrap().verify(&mut |_| ()).unwrap_err();
    assert!(matches!(error, VerifyError::Root { .. }), "{error}");
    fs::write(dir.join("manifest"), &manifest.to_bytes()[1..]).unwrap();
    assert!(matches!(Dataset::open(dir), Err(OpenError::Manifest { .. })));
}

#[test]
fn a_dataset_is_fetched_by_hash() {
    let folder = tempfile::tempdir().unwrap();
    let (there, here) = (folder.path().join("there"), folder.path().join("here"));
    let hash = prepared(&there).hash();
    let manifest = fs::read(there.join("manifest")).unwrap();
    store_object(&here, &hash, "manifest", &manifest).unwrap();
    for (name, hash, bytes) in shard_files(&Manifest::from_bytes(&manifest).unwrap()) {
        let content = fs::read(there.join(&name)).unwrap();
        assert_eq!(content.len() as u64, bytes);
        store_object(&here, &hash, &name, &content).unwrap();
    }
    let dataset = Dataset::open(&here).unwrap();
    dataset.verify(&mut |_| ()).unwrap();
    assert_eq!(dataset.manifest().hash(), hash);
}

#[test]
fn a_hugging_face_tokenizer_travels_with_the_data() {
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("my-tokenizer.json");
    fs::write(&json, TINY_TOKENIZER).unwrap();
    let options = PrepareOptions { tokenizer: Some(json), seq_len: 8, ..small() };
    let out = folder.path().join("out");
    let documents = || (0..200).map(|at| "ab".repeat(at % 7 + 1) + &"b".repeat(at % 5) + "\n");
    let manifest = prepare_text(documents(), &out, &options, &mut |_| ()).unwrap();
    assert_eq!((manifest.vocab_size, manifest.end_of_text, manifest.token_bytes), (70_001, 70_000, 4));
    assert!(matches!(manifest.tokenizer, TokenizerId::Json { .. }));
    let dataset = Dataset::open(&out).unwrap();
    dataset.verify(&mut |_| ()).unwrap();
    // The first two documents are "ab\n" and "ababb\n".
    assert_eq!(dataset.sample(Split::Train, 0).unwrap(), [2, 3, 70_000, 2, 2, 69_999, 3, 70_000]);
    assert!(manifest.bytes_per_token(Split::Train) > 1.2);

    fs::write(out.join("tokenizer.json"), TINY_TOKENIZER.replace("null", " null")).unwrap();
    let error = dataset.verify(&mut |_| ()).unwrap_err();
    assert!(matches!(error, VerifyError::Tokenizer(TokenizerError::WrongHash { .. })), "{error}");
}

#[test]
fn what_cannot_be_prepared_is_refused_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let refuse = |documents: Vec<&str>, options: &PrepareOptions| {
        let documents = documents.into_iter().map(str::to_owned);
        let error = prepare_text(documents, &out, options, &mut |_| ()).unwrap_err();
        assert!(matches!(Dataset::open(&out), Err(OpenError::Io { .. })));
        error
    };
    assert!(matches!(refuse(vec![], &small()), PrepareError::TooShort { tokens: 0, .. }));
    assert!(matches!(refuse(vec!["", "", "short"], &small()), PrepareError::TooShort { .. }));
    for options in [
        PrepareOptions { seq_len: 1, ..small() },
        PrepareOptions { held_out_fraction: f64::NAN, ..small() },
        PrepareOptions { held_out_fraction: 0.0, ..small() },
        PrepareOptions { shard_samples: 0, ..small() },
        PrepareOptions { shard_samples: u64::MAX, ..small() },
    ] {
        assert!(matches!(refuse(vec!["text"], &options), PrepareError::Option { .. }));
    }
    let missing = PrepareOptions { tokenizer: Some(PathBuf::from("/nonexistent.json")), ..small() };
    assert!(matches!(refuse(vec!["text"], &missing), PrepareError::Tokenizer(TokenizerError::Io { .. })));

    // The first bad line ends it.
    let path = folder.path().join("bad.jsonl");
    fs::write(&path, "{\"text\": \"good\"}\n{\"text\": }\n").unwrap();
    let error = prepare(&[path], &out, &small(), &mut |_| ()).unwrap_err();
    assert!(matches!(error, PrepareError::Source(SourceError::JsonLine { line: 2, .. })), "{error}");
    assert!(!out.exists());

    // Shards of the one split are whole when the other turns out too short. What else is in the folder stays.
    fs::create_dir(&out).unwrap();
    fs::write(out.join("mine"), "").unwrap();
    let text = "the quick brown fox jumps over the lazy dog\n".repeat(700);
    let options = PrepareOptions { seq_len: 4000, shard_samples: 1, ..small() };
    assert!(matches!(refuse(vec![&text], &options), PrepareError::TooShort { tokens: 1.., .. }));
    let left: Vec<_> = fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["mine"]);
    let file = prepare_text([text].into_iter(), &out.join("mine"), &small(), &mut |_| ()).unwrap_err();
    assert!(matches!(file, PrepareError::OutIsFile { .. }), "{file}");
}

/// A text of a few kilobytes is enough for both splits.
#[test]
fn small_texts_have_both_splits() {
    let grammar = Grammar::new(1);
    for seed in 0..20 {
        let folder = tempfile::tempdir().unwrap();
        let options = PrepareOptions { seq_len: 64, seed, ..PrepareOptions::default() };
        let text = grammar.documents(seed, 8_000);
        let manifest = prepare_text(text, folder.path(), &options, &mut |_| ()).unwrap();
        assert!(manifest.held_out.samples >= 1 && manifest.train.samples > 80);
    }
}

#[test]
fn a_dataset_can_be_shared_between_threads() {
    fn shared<T: Send + Sync + std::fmt::Debug>() {}
    shared::<dataset::Dataset>();
}
