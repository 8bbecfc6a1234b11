//! A run is a hash: [`RunSpec`] is everything that nodes of one run must agree on, and [`RunId`] is its BLAKE3.
//!
//! `run.toml` is the text form. Parsing is strict: an unknown key, a missing key or an impossible value is an error
//! that names the key and the allowed range. The hash is taken over names and values of all keys, so comments,
//! order and white space do not change the run. A key that a later release adds is left out of the hash where it has the
//! value that means "as before", so that no release changes the id of a run.

mod id;
mod keys;
mod pace;
mod spec;
mod text;
mod validate;

pub use keys::{Bound, KEYS, RunKey, Values, page};
pub use spec::*;
pub use text::SetError;
pub use validate::RunSpecError;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::spec;

    fn error(edit: impl Fn(&mut RunSpec)) -> String {
        let mut run = spec();
        edit(&mut run);
        RunSpec::from_toml(&run.to_toml()).unwrap_err().to_string()
    }

    #[test]
    fn comments_and_white_space_do_not_change_the_run() {
        let run = spec();
        assert_eq!(RunSpec::from_toml(&run.to_toml()).unwrap(), run);
        let commented = format!("# a comment\n{}", run.to_toml().replace(" = ", "   =   "));
        assert_eq!(RunSpec::from_toml(&commented).unwrap().id(), run.id());
        assert_eq!(run.id().to_string(), "5e94f7d6ef5dbd8518713b55995145ab38383c7f1a9114a7697704b17fa24dd7");
    }

    #[test]
    fn every_value_is_part_of_the_id() {
        let edits: [fn(&mut RunSpec); 7] = [
            |run| run.chain.netuid += 1,
            |run| run.model.qk_norm = true,
            |run| run.inner.lr *= 2.0,
            |run| run.outer.mean_over = MeanOver::Senders,
            |run| run.windows.vote_block += 1,
            |run| run.scoring.memory = 0.5,
            |run| run.name.push('x'),
        ];
        for edit in edits {
            let mut run = spec();
            edit(&mut run);
            assert_ne!(run.id(), spec().id());
        }
    }

    #[test]
    fn a_run_without_the_later_keys_is_the_same_run() {
        let run = spec();
        let later: Vec<&RunKey> = KEYS.iter().filter(|key| key.is_as_before.is_some()).collect();
        let is_later = |line: &str| {
            later.iter().any(|key| line.starts_with(&format!("{} = ", key.key.rsplit('.').next().unwrap())))
        };
        let text = run.to_toml();
        let before: String = text.split_inclusive('\n').filter(|line| !is_later(line)).collect();
        assert!(before.lines().count() + later.len() == text.lines().count() && !later.is_empty());
        assert_eq!(RunSpec::from_toml(&before).unwrap(), run);
        let mut other = run.clone();
        other.inner.reset_every_windows = 1;
        assert_ne!(other.id(), run.id());
    }

    #[test]
    fn errors_name_the_key_and_the_range() {
        assert_eq!(error(|run| run.windows.put_block = 40), "`windows.put_block` is 40, but must lie in 3 ..= 16");
        assert_eq!(
            error(|run| run.model.heads = 5),
            "`model.hidden_size` is 32, but must be a multiple of model.heads, which is 5"
        );
        let huge =
            error(|run| (run.model.ffn_size, run.model.hidden_size, run.model.layers) = (1 << 20, 1 << 16, 1024));
        assert!(huge.starts_with("`model (parameters)` is 2"), "{huge}");
        assert!(error(|run| run.inner.lr = f64::NAN).starts_with("`inner.lr` is NaN, but must lie in"));
        let text = spec().to_toml();
        let unknown = RunSpec::from_toml(&text.replace("[windows]", "[windows]\nsecs = 3")).unwrap_err().to_string();
        assert!(unknown.contains("unknown field `secs`"), "{unknown}");
        let unit = RunSpec::from_toml(&text.replace("blocks = 20", "blocks = \"20s\"")).unwrap_err().to_string();
        assert_eq!(
            unit,
            "`windows.blocks` has the wrong type (invalid type: string \"20s\", expected u64); \
             it must lie in 10 ..= 1000000"
        );
        let negative = RunSpec::from_toml(&text.replace("layers = 2", "layers = -2")).unwrap_err().to_string();
        assert!(negative.ends_with("it must lie in 1 ..= 1024"), "{negative}");
        let missing = RunSpec::from_toml(&text.replace("put_block = 10\n", "")).unwrap_err().to_string();
        assert!(missing.contains("missing field `put_block`"), "{missing}");
        let netuid = RunSpec::from_toml(&text.replace("netuid = 3", "netuid = 70000")).unwrap_err().to_string();
        assert!(netuid.starts_with("`chain.netuid`") && netuid.ends_with("in 0 ..= 65535"), "{netuid}");
        for huge in ["99999999999999999999", "-99999999999999999999"] {
            let huge = RunSpec::from_toml(&text.replace("layers = 2", &format!("layers = {huge}"))).unwrap_err();
            let huge = huge.to_string();
            assert!(huge.starts_with("`model.layers`") && huge.ends_with("in 1 ..= 1024"), "{huge}");
        }
        assert_eq!(
            error(|run| run.name = "a\u{1b}[2Jb".to_owned()),
            "`name` is \"a\\u{1b}[2Jb\", but must not have control characters: a terminal would obey them"
        );
        let late = |run: &mut RunSpec| (run.chain.start_block, run.windows.snapshot_lag_blocks) = (1000, 21);
        assert_eq!(error(late), "`windows.snapshot_lag_blocks` is 21, but must lie in 1 ..= 20");
        assert!(matches!(RunSpec::from_toml(&"#".repeat(70_000)), Err(RunSpecError::TooLong { .. })));
    }

    #[test]
    fn a_transform_needs_top_k_and_square_chunks() {
        let with = |edit: fn(&mut CodecSpec)| {
            error(|run| {
                run.codec.transform = Transform::Dct;
                edit(&mut run.codec);
            })
        };
        assert_eq!(
            with(|codec| codec.kind = CodecKind::DenseF32),
            "`codec.transform` is dct, which needs a codec.kind that picks values: topk-sign or topk-2bit, not dense-f32"
        );
        assert_eq!(
            with(|codec| codec.chunk = 1024),
            "`codec.transform` is dct, which needs codec.chunk = 4096, not 1024"
        );
        let mut run = spec();
        run.codec.transform = Transform::Dct;
        assert_eq!(RunSpec::from_toml(&run.to_toml()), Ok(run.clone()));
        assert_ne!(run.id(), spec().id());
    }

    #[test]
    fn the_table_has_every_key_in_the_order_of_the_file() {
        let text = spec().to_toml();
        let mut section = String::new();
        let mut keys = Vec::new();
        for line in text.lines() {
            if let Some(header) = line.strip_prefix('[') {
                section = format!("{}.", header.trim_end_matches(']'));
            } else if let Some((key, _)) = line.split_once(" = ") {
                keys.push(format!("{section}{key}"));
            }
        }
        assert_eq!(keys, KEYS.iter().map(|key| key.key).collect::<Vec<_>>());
    }

    /// A getter of the wrong field would not read the value in the file.
    #[test]
    fn the_table_reads_the_values_in_the_file() {
        let run = spec();
        let table: toml::Table = toml::from_str(&run.to_toml()).unwrap();
        for key in KEYS {
            let value = match key.key.split_once('.') {
                Some((section, name)) => &table[section][name],
                None => &table[key.key],
            };
            match &key.values {
                Values::Integer { get, .. } => assert_eq!(value.as_integer(), Some(get(&run) as i64), "{}", key.key),
                Values::Number { get, .. } => assert_eq!(value.as_float(), Some(get(&run)), "{}", key.key),
                Values::Text { get, .. } => assert_eq!(value.as_str(), Some(get(&run)), "{}", key.key),
                Values::Choice { names, .. } => assert!(names.contains(&value.as_str().unwrap()), "{}", key.key),
                Values::Hash(get) => assert_eq!(value.as_str(), Some(&*get(&run).to_string()), "{}", key.key),
                Values::Switch(get) => assert_eq!(value.as_bool(), Some(get(&run)), "{}", key.key),
            }
        }
    }

    /// `TEMPLAR_BLESS=1` rewrites the page.
    #[test]
    fn golden_page_of_keys_holds() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/run-keys.md");
        if std::env::var_os("TEMPLAR_BLESS").is_some() {
            std::fs::write(path, page()).unwrap();
        }
        let written = std::fs::read_to_string(path).unwrap();
        assert!(
            written == page(),
            "docs/run-keys.md differs from the table of keys; \
             `TEMPLAR_BLESS=1 cargo test --release -p templar-protocol golden` rewrites it"
        );
    }

    #[test]
    fn single_values_are_set_by_key() {
        let mut run = spec();
        let expected = {
            let mut run = spec();
            (run.outer.rate, run.inner.steps, run.model.tied_embeddings) = (0.65, 30, false);
            (run.codec.kind, run.outer.mean_over) = (CodecKind::TopkTwoBit, MeanOver::Senders);
            run.name = "7".into();
            run
        };
        let values = [
            ("outer.rate", "0.65"),
            ("inner.steps", "30"),
            ("model.tied_embeddings", "false"),
            ("codec.kind", "topk-2bit"),
            ("outer.mean_over", "senders"),
            ("name", "7"),
        ];
        for (key, value) in values {
            run.set(key, value).unwrap();
        }
        assert_eq!(run, expected);
        // A whole number is a number too, and ranges that depend on other keys are left to validation.
        run.set("outer.rate", "1").unwrap();
        run.set("windows.put_block", "500").unwrap();
        assert!(run.validate().unwrap_err().to_string().contains("`windows.put_block` is 500"));
    }

    #[test]
    fn a_refused_setting_names_what_is_allowed() {
        let before = spec();
        let mut run = spec();
        let mut error = |key: &str, value: &str| run.set(key, value).unwrap_err().to_string();
        assert_eq!(
            error("inner.steps", "many"),
            "`inner.steps` cannot be \"many\"; it must be a whole number in 1 ..= 10000 (steps)"
        );
        for (key, value) in [
            ("inner.steps", "10001"),
            ("inner.steps", "1.5"),
            ("inner.lr", "nan"),
            ("inner.lr", "2"),
            ("model.layers", "-1"),
            ("chain.netuid", "70000"),
            ("chain.genesis", "00"),
            ("name", ""),
            ("model.tied_embeddings", "yes"),
        ] {
            assert!(error(key, value).contains("it must be "), "{key} {value}");
        }
        assert!(error("codec.kind", "zip").ends_with("it must be one of topk-sign, dense-f32, topk-2bit"));
        assert_eq!(error("outer.rat", "1"), "a run has no key `outer.rat`: did you mean `outer.rate`?");
        assert!(error("beta2", "1").ends_with("did you mean `inner.beta2`?"));
        let section = error("outer.momentum_of_nesterov", "1");
        assert!(section.ends_with("`outer` has outer.rate, outer.mean_over, outer.min_senders"), "{section}");
        assert!(error("nothing.of_the_kind", "1").contains("its sections are chain, model, theta0, data, codec"));
        assert_eq!(run, before);
    }
}
