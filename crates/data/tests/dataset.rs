//! Text is prepared into a folder and read back, and errors name what is damaged.

#![allow(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use templar_data::{
    Dataset, Existing, Grammar, Holds, Manifest, OpenError, PrepareError, PrepareOptions, ReadError, SourceError,
    Split, TokenizerError, TokenizerId, VerifyError, dataset, prepare, prepare_text, prepared_dataset, shard_files,
    store_object,
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
fn text_comes_back_and_no_line_is_in_both_splits() {
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

    // One JSON line per document, in two files of a folder.
    let lines: Vec<_> = corpus().map(|text| format!("{{\"id\": 1, \"text\": {text:?}}}\n")).collect();
    let sources = folder.path().join("sources");
    fs::create_dir(&sources).unwrap();
    fs::write(sources.join("a.jsonl"), lines[..5].concat()).unwrap();
    fs::write(sources.join("b.jsonl"), lines[5..].concat()).unwrap();
    let mut last = None;
    let from_files =
        prepare(&[sources], &folder.path().join("files"), &small(), &mut |progress| last = Some(progress)).unwrap();
    assert_eq!(from_files, first);
    let last = last.unwrap();
    assert_eq!(last.text_bytes, first.train.text_bytes + first.held_out.text_bytes);
    assert_eq!(Some(last.read_bytes), last.source_bytes);
    assert!(last.read_bytes > last.text_bytes);

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
    // 16 KiB segments: 5 % of 3 MB are nine or ten of them, nearly all followed by an end of text.
    assert!((7..=10).contains(&ends), "{ends}");
    let whole = &held_out[..=held_out.rfind('\n').unwrap()];
    Grammar::new(1).bits(whole).expect("every cut is between sentences");
}

#[test]
fn errors_name_what_is_damaged() {
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
    // A high byte makes the token larger than the vocabulary, which reading alone detects.
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
fn a_failed_preparation_leaves_nothing() {
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

    // The first bad line ends the preparation.
    let path = folder.path().join("bad.jsonl");
    fs::write(&path, "{\"text\": \"good\"}\n{\"text\": }\n").unwrap();
    let error = prepare(&[path], &out, &small(), &mut |_| ()).unwrap_err();
    assert!(matches!(error, PrepareError::Source(SourceError::JsonLine { line: 2, .. })), "{error}");
    assert!(!out.exists());

    // Shards of one split are complete when the other turns out too short.
    let text = "the quick brown fox jumps over the lazy dog\n".repeat(700);
    let options = PrepareOptions { seq_len: 4000, shard_samples: 1, ..small() };
    assert!(matches!(refuse(vec![&text], &options), PrepareError::TooShort { tokens: 1.., .. }));
    assert!(!out.exists());
    fs::create_dir(&out).unwrap();
    assert!(matches!(refuse(vec![&text], &options), PrepareError::TooShort { tokens: 1.., .. }));
    assert_eq!(names(&out), [""; 0]);
    fs::write(out.join("mine"), "").unwrap();
    let file = prepare_text([text].into_iter(), &out.join("mine"), &small(), &mut |_| ()).unwrap_err();
    assert!(matches!(file, PrepareError::OutIsFile { .. }), "{file}");
    let named = PrepareOptions { end_of_text: Some("</s>".to_owned()), ..small() };
    let error = prepare_text(corpus(), &folder.path().join("new"), &named, &mut |_| ()).unwrap_err();
    assert!(error.to_string().contains("--end-of-text needs --tokenizer"), "{error}");
}

/// Sorted names of what a folder holds.
fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort_unstable();
    names
}

/// Every file of a folder and its subfolders, with its bytes.
fn snapshot(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(snapshot(&path));
        } else {
            files.insert(path.clone(), fs::read(path).unwrap());
        }
    }
    files
}

fn other() -> PrepareOptions {
    PrepareOptions { seed: 6, ..small() }
}

fn replacing() -> PrepareOptions {
    PrepareOptions { existing: Existing::Replace, ..other() }
}

fn try_prepare(dir: &Path, options: &PrepareOptions) -> Result<Manifest, PrepareError> {
    prepare_text(corpus(), dir, options, &mut |_| ())
}

#[test]
fn a_folder_that_is_not_empty_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    prepared(dir);
    let before = snapshot(dir);
    let error = try_prepare(dir, &other()).unwrap_err();
    assert!(matches!(error, PrepareError::NotEmpty { holds: Holds::Dataset, .. }), "{error}");
    assert!(error.to_string().contains("--replace"), "{error}");
    assert_eq!(snapshot(dir), before);

    fs::remove_file(dir.join("manifest")).unwrap();
    let error = try_prepare(dir, &other()).unwrap_err();
    assert!(matches!(error, PrepareError::NotEmpty { holds: Holds::Leftovers, .. }), "{error}");

    // This is not a dataset: there is nothing to replace, and the files belong to the user.
    let home = tempfile::tempdir().unwrap();
    for name in ["manifest", "verified", "tokenizer.json", "note.tokens"] {
        fs::write(home.path().join(name), "mine").unwrap();
    }
    let before = snapshot(home.path());
    for options in [other(), replacing()] {
        let error = try_prepare(home.path(), &options).unwrap_err();
        assert!(matches!(error, PrepareError::NotEmpty { holds: Holds::Others { .. }, .. }), "{error}");
        assert_eq!(snapshot(home.path()), before);
    }
}

#[test]
fn replacing_a_dataset_leaves_other_files_alone() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    let old = prepared(dir);
    fs::write(dir.join("verified"), format!("{}\n", old.hash())).unwrap();
    fs::create_dir(dir.join("notes")).unwrap();
    fs::write(dir.join("notes/a.txt"), "mine").unwrap();
    fs::write(dir.join("tokenizer.json"), "mine").unwrap();
    // The old dataset had no tokenizer, so that file is a stray; a new dataset with one would overwrite it.
    let json = folder.path().join("notes/my.json");
    fs::write(&json, TINY_TOKENIZER).unwrap();
    let with_tokenizer = PrepareOptions { tokenizer: Some(json), ..replacing() };
    let error = try_prepare(dir, &with_tokenizer).unwrap_err();
    assert!(matches!(error, PrepareError::InTheWay { ref path } if path.ends_with("tokenizer.json")), "{error}");
    assert_eq!(Dataset::open(dir).unwrap().manifest(), &old);

    // A preparation that fails midway leaves the old dataset as it was.
    let before = snapshot(dir);
    let error = prepare_text(["short".to_owned()].into_iter(), dir, &replacing(), &mut |_| ()).unwrap_err();
    assert!(matches!(error, PrepareError::TooShort { .. }), "{error}");
    assert_eq!(snapshot(dir), before);

    let new = try_prepare(dir, &replacing()).unwrap();
    assert_ne!(new.hash(), old.hash());
    let dataset = Dataset::open(dir).unwrap();
    assert_eq!(dataset.manifest(), &new);
    dataset.verify(&mut |_| ()).unwrap();
    assert_eq!(dataset.strays().unwrap(), ["notes", "tokenizer.json"]);
    assert_eq!(fs::read_to_string(dir.join("notes/a.txt")).unwrap(), "mine");
    // A dataset can replace itself, because the files belong to it.
    assert_eq!(try_prepare(dir, &replacing()).unwrap(), new);
    Dataset::open(dir).unwrap().verify(&mut |_| ()).unwrap();
}

/// After a kill the folder opens as one dataset or not at all, and can be replaced.
#[test]
fn an_interrupted_replacement_never_opens_as_a_mix() {
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("my.json");
    fs::write(&json, TINY_TOKENIZER).unwrap();
    let documents = || (0..200).map(|at| "ab".repeat(at % 7 + 1) + &"b".repeat(at % 5) + "\n");
    let old_options = PrepareOptions { tokenizer: Some(json), seq_len: 8, ..small() };
    let json2 = folder.path().join("my2.json");
    fs::write(&json2, TINY_TOKENIZER.replace("null", " null")).unwrap();
    let new_options = PrepareOptions { tokenizer: Some(json2), ..PrepareOptions { seq_len: 16, ..replacing() } };
    let new_options = &new_options;
    let (old_dir, new_dir) = (folder.path().join("old"), folder.path().join("new"));
    let old = prepare_text(documents(), &old_dir, &old_options, &mut |_| ()).unwrap();
    let new = prepare_text(documents(), &new_dir, new_options, &mut |_| ()).unwrap();

    // The states between the steps, by hand: staged; shards moved; old manifest and tokenizer out; new tokenizer in.
    for steps in 0..=5 {
        let dir = folder.path().join(format!("killed-{steps}"));
        let staging = dir.join(".templar-prepare");
        fs::create_dir_all(staging.join("old")).unwrap();
        for (path, bytes) in snapshot(&old_dir) {
            fs::write(dir.join(path.file_name().unwrap()), bytes).unwrap();
        }
        for (path, bytes) in snapshot(&new_dir) {
            fs::write(staging.join(path.file_name().unwrap()), bytes).unwrap();
        }
        let shards: Vec<_> =
            shard_files(&new).into_iter().map(|(name, ..)| (staging.join(&name), dir.join(name))).collect();
        let moves: [Vec<(PathBuf, PathBuf)>; 5] = [
            shards,
            vec![(dir.join("manifest"), staging.join("old/manifest"))],
            vec![(dir.join("tokenizer.json"), staging.join("old/tokenizer.json"))],
            vec![(staging.join("tokenizer.json"), dir.join("tokenizer.json"))],
            vec![(staging.join("manifest"), dir.join("manifest"))],
        ];
        for (from, to) in moves.iter().take(steps).flatten() {
            fs::rename(from, to).unwrap();
        }
        match (steps, Dataset::open(&dir)) {
            (0 | 1, Ok(dataset)) => {
                assert_eq!(dataset.manifest(), &old);
                dataset.verify(&mut |_| ()).unwrap();
            }
            (5, Ok(dataset)) => {
                assert_eq!(dataset.manifest(), &new);
                dataset.verify(&mut |_| ()).unwrap();
                assert!(!dataset.strays().unwrap().is_empty());
            }
            (2..=4, Err(OpenError::Io { .. })) => {}
            (steps, other) => panic!("after {steps} steps: {other:?}"),
        }
        let refused = prepare_text(documents(), &dir, &old_options, &mut |_| ()).unwrap_err();
        assert!(matches!(refused, PrepareError::NotEmpty { .. }), "{refused}");
        assert_eq!(prepare_text(documents(), &dir, new_options, &mut |_| ()).unwrap(), new);
        let dataset = Dataset::open(&dir).unwrap();
        dataset.verify(&mut |_| ()).unwrap();
        assert_eq!(dataset.strays().unwrap(), [""; 0]);
        assert_eq!(snapshot(&dir).len(), snapshot(&new_dir).len());
    }
}

#[test]
fn one_preparation_at_a_time_and_an_abandoned_one_is_cleared() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let mut asked = false;
    prepare_text(corpus(), &out, &small(), &mut |_| {
        if !std::mem::replace(&mut asked, true) {
            let error = try_prepare(&out, &other()).unwrap_err();
            assert!(matches!(error, PrepareError::Busy { .. }), "{error}");
        }
    })
    .unwrap();
    assert!(asked);
    Dataset::open(&out).unwrap().verify(&mut |_| ()).unwrap();
    assert_eq!(Dataset::open(&out).unwrap().strays().unwrap(), [""; 0]);

    // Killed before anything took its place: all of that is the preparation's own.
    let out = folder.path().join("killed");
    fs::create_dir_all(out.join(".templar-prepare")).unwrap();
    fs::write(out.join(".templar-prepare/.abc.tmp"), "half a shard").unwrap();
    let manifest = try_prepare(&out, &small()).unwrap();
    assert_eq!(names(&out).len(), manifest.train.shards.len() + manifest.held_out.shards.len() + 1);
}

#[test]
fn strays_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    prepared(dir);
    let dataset = Dataset::open(dir).unwrap();
    assert_eq!(dataset.strays().unwrap(), [""; 0]);
    let shard = format!("{}.tokens", "0".repeat(64));
    for name in ["verified", "notes.txt", "tokenizer.json", &shard] {
        fs::write(dir.join(name), "").unwrap();
    }
    // A node's own note is not a stray.
    assert_eq!(dataset.strays().unwrap(), [shard.as_str(), "notes.txt", "tokenizer.json"]);
    dataset.verify(&mut |_| ()).unwrap();
}

#[test]
fn a_dataset_appears_in_another_folder() {
    let folder = tempfile::tempdir().unwrap();
    let (data, link) = (folder.path().join("data"), folder.path().join("net/dataset"));
    let manifest = prepared(&data);
    fs::write(data.join("notes.txt"), "mine").unwrap();
    Dataset::open(&data).unwrap().link_to(&link).unwrap();
    fs::remove_dir_all(&data).unwrap();
    let dataset = Dataset::open(&link).unwrap();
    assert_eq!(dataset.manifest(), &manifest);
    dataset.verify(&mut |_| ()).unwrap();
    assert_eq!(dataset.strays().unwrap(), [""; 0]);
}

#[test]
fn a_prepared_folder_is_told_from_a_folder_of_text() {
    let folder = tempfile::tempdir().unwrap();
    let (data, text) = (folder.path().join("data"), folder.path().join("text"));
    let manifest = prepared(&data);
    assert_eq!(prepared_dataset(&data).unwrap(), Some(manifest));
    fs::create_dir(&text).unwrap();
    fs::write(text.join("a.txt"), "text").unwrap();
    assert_eq!(prepared_dataset(&text).unwrap(), None);
    assert_eq!(prepared_dataset(&text.join("a.txt")).unwrap(), None);
    assert_eq!(prepared_dataset(&folder.path().join("none")).unwrap(), None);
    fs::write(text.join("manifest"), "of a ship").unwrap();
    assert_eq!(prepared_dataset(&text).unwrap(), None);
    fs::create_dir(text.join("b")).unwrap();
    fs::create_dir(text.join("b/manifest")).unwrap();
    assert_eq!(prepared_dataset(&text.join("b")).unwrap(), None);
    fs::write(data.join("manifest"), "damaged").unwrap();
    assert!(matches!(prepared_dataset(&data), Err(OpenError::Manifest { .. })));
}

/// Batches of segments are encoded on all threads. Neither their number nor the batch boundaries may change the result.
#[test]
fn tokens_do_not_depend_on_threads() {
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("my.json");
    fs::write(&json, TINY_TOKENIZER).unwrap();
    let options = PrepareOptions { tokenizer: Some(json), ..small() };
    let documents = || (0..3000).map(|at| "ab".repeat(at % 700 + 1) + &"b".repeat(at % 5) + "\n");
    let with = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let out = folder.path().join(threads.to_string());
        pool.install(|| prepare_text(documents(), &out, &options, &mut |_| ())).unwrap()
    };
    let one = with(1);
    assert_eq!(with(3), one);
    assert_eq!(one.hash().to_string(), "fc0bb015826b3c50d2fd09cbaecbc7a2fd0859f2ce0ca354b30525d487c4a09c");
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
