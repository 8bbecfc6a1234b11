//! `templar run verify --from-genesis`, on networks of real parts.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use serde_json::{Value, json};

use super::common::{alone, templar, text};

fn verify(network: &Path) -> (i32, Value) {
    let output = templar(&["run", "verify", "--json", "--from-genesis", "--folder"]).arg(network).output().unwrap();
    let document = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", text(&output)));
    (output.status.code().unwrap(), document)
}

/// The files of a validator's objects whose keys contain `part`; see the S3 server.
fn objects(network: &Path, validator: &str, part: &str) -> Vec<PathBuf> {
    let files = fs::read_dir(network.join("s3").join(validator).join("objects")).unwrap();
    let mut files: Vec<PathBuf> = files.map(|file| file.unwrap().path()).collect();
    files.retain(|file| file.file_name().unwrap().to_string_lossy().replace('+', "/").contains(part));
    files.sort();
    files
}

fn flip(file: &Path) {
    let mut bytes = fs::read(file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(file, bytes).unwrap();
}

fn ran(output: &Output) {
    assert!(output.status.success(), "{}", text(output));
}

#[test]
fn a_kept_network_is_verified_and_a_liar_is_named() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let network = folder.path().join("network");
    let demo = ["demo", "--windows", "4", "--miners", "2", "--validators", "2", "--archive", "--folder"];
    ran(&templar(&demo).arg(&network).output().unwrap());
    let (code, document) = verify(&network);
    assert_eq!((code, &document["verdict"]["kind"]), (0, &json!("verified")), "{document}");
    assert_eq!((&document["windows"], &document["certified"]), (&json!(3), &json!(3)), "{document}");
    assert_eq!(document["theta"]["recomputed"], json!([[0, 2]]), "{document}");
    assert_eq!(document["chain"]["inputs"], json!([[0, 2]]), "{document}");
    assert_eq!(document["wrong_count"], 0, "{document}");

    for part in ["/archive/state/", "/archive/inputs/", "/held/00000001/"] {
        flip(&objects(&network, "validator-0", part)[0]);
    }
    let (code, document) = verify(&network);
    assert_eq!((code, &document["verdict"]["kind"]), (0, &json!("verified")), "{document}");
    let wrong = document["wrong"].as_array().unwrap();
    assert!(!wrong.is_empty() && wrong.iter().all(|wrong| wrong["owner"] == "validator-0"), "{document}");

    // For people, and when nobody serves the truth.
    for validator in ["validator-0", "validator-1"] {
        for file in objects(&network, validator, "/archive/inputs/") {
            fs::remove_file(file).unwrap();
        }
    }
    let output = templar(&["run", "verify", "--from-genesis", "--folder"]).arg(&network).output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{}", text(&output));
    let said = text(&output);
    assert!(said.contains("NOT verified. Window 0: nobody serves v1/") && said.contains("certificates"), "{said}");
    let (code, document) = verify(&network);
    assert_eq!((code, &document["verdict"]["kind"], &document["verdict"]["window"]), (3, &json!("missing"), &json!(0)));

    let neither = templar(&["run", "verify", "--from-genesis"]).arg(network.join("run.toml")).output().unwrap();
    assert_eq!(neither.status.code(), Some(2), "{}", text(&neither));
    assert!(text(&neither).contains("--chain URL"), "{}", text(&neither));
}
