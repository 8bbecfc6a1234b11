//! What a network's folder is good for.

use templar_node::pretrain::checkpoint::Retention;
use templar_protocol::hash::Hash32;
use templar_protocol::run::CodecKind;
use templar_record::event::{Event, Role, Verdict};

use super::*;
use crate::local::guest::Guest;
use crate::local::kept::files::DEFINITION;
use crate::local::network::{Network, Text};
use crate::plan::Plan;
use crate::r#virtual::scenario::tiny_preset;

fn network(seed: u64, windows: u64) -> Network {
    let plan = Plan { miners: 1, validators: 1, windows, seed, preset: tiny_preset(), adversaries: Vec::new() };
    let (codec, text) = (CodecKind::TopkTwoBit, Text::BuiltIn);
    Network {
        plan,
        codec,
        set: Vec::new(),
        from: None,
        text,
        folder: PathBuf::new(),
        engines: Vec::new(),
        retention: Retention::default(),
    }
}

fn open(folder: &Path, network: &Network) -> Result<Kept, KeptError> {
    Kept::open(folder, &Definition::new(Ring::Demo, network, &[]))
}

fn stand(kept: &mut Kept, network: &Network) {
    let spec = network.plan.spec(Hash32::of(b"g"), Hash32::of(b"m"));
    let place = "127.0.0.1:7".parse().unwrap();
    kept.stands(&spec, place, place).unwrap();
}

fn settled(window: u64) -> NodeEvent {
    let (verdict, state_root) = (Verdict::TooFewVotes, Hash32::of(b"r"));
    let event = Event::Settled { window, verdict, state_root, payload_bytes: 0, values: 0, tokens: 0 };
    NodeEvent { node: "validator-0".to_owned(), event }
}

#[test]
fn a_network_that_stood_goes_on_with_what_was_heard_and_a_finished_one_says_so() {
    let (folder, network) = (tempfile::tempdir().unwrap(), network(1, 2));
    let mut kept = open(folder.path(), &network).unwrap();
    assert!(kept.spec.is_none());
    stand(&mut kept, &network);
    assert!(matches!(open(folder.path(), &network), Err(KeptError::InUse { .. })));
    kept.hear(&settled(0));
    drop(kept);
    // A kill in the middle of a line.
    let path = folder.path().join(EVENTS);
    let whole = fs::read_to_string(&path).unwrap();
    fs::write(&path, whole.clone() + &whole[..20]).unwrap();
    let mut kept = open(folder.path(), &network).unwrap();
    assert!(kept.spec.is_some() && kept.definition.chain == Some("127.0.0.1:7".parse().unwrap()));
    assert_eq!(kept.progress(), (1, 0));
    let bits_per_byte = 1.0;
    for event in
        [settled(1), NodeEvent { event: Event::Validated { window: 1, loss: 1.0, bits_per_byte }, ..settled(1) }]
    {
        kept.hear(&event);
    }
    drop(kept);
    let said = open(folder.path(), &network).unwrap_err().to_string();
    assert!(said.contains("has trained 2 windows") && said.contains("templar export"), "{said}");
    // More windows are another matter.
    assert_eq!(open(folder.path(), &self::network(1, 3)).unwrap().progress().0, 2);
    let (kept, _) = Kept::read(folder.path()).unwrap();
    assert_eq!(kept.recorder.settled(1), 1);
}

#[test]
fn another_network_is_told_apart_by_the_option_that_differs() {
    let folder = tempfile::tempdir().unwrap();
    stand(&mut open(folder.path(), &network(1, 2)).unwrap(), &network(1, 2));
    let said = |network: &Network| open(folder.path(), network).unwrap_err().to_string();
    assert!(said(&network(2, 2)).contains("--seed was 1, and is 2 now"));
    let codec = Network { codec: CodecKind::DenseF32, ..network(1, 2) };
    assert!(said(&codec).contains("--codec was topk-2bit, and is dense-f32 now"), "{}", said(&codec));
    let text = Text::Paths { sources: vec!["/a.txt".into()], tokenizer: None, end_of_text: None };
    assert!(said(&Network { text, ..network(1, 2) }).contains("--data was not given, and is /a.txt now"));
    let localnet = Definition::new(Ring::Localnet, &network(1, 2), &[]);
    let said = Kept::open(folder.path(), &localnet).unwrap_err().to_string();
    assert!(said.contains("holds a network of `templar demo`"), "{said}");
}

#[test]
fn guests_stay_when_a_network_goes_on_without_naming_them() {
    let (folder, network) = (tempfile::tempdir().unwrap(), network(1, 2));
    let guest = |name: &str, key: &str| Guest {
        name: name.to_owned(),
        role: Role::Miner,
        hotkey: templar_protocol::keys::Keypair::insecure_dev(1, key).hotkey(),
    };
    let open =
        |guests: &[Guest]| Kept::open(folder.path(), &Definition::new(Ring::Localnet, &network, guests)).unwrap();
    let first = guest("guest-0", "a");
    stand(&mut open(std::slice::from_ref(&first)), &network);
    assert_eq!(open(&[]).definition.guests(), std::slice::from_ref(&first));
    assert_eq!(open(std::slice::from_ref(&first)).definition.guests(), std::slice::from_ref(&first));
    // Who is new takes nobody's bucket.
    assert_eq!(open(&[guest("guest-0", "b")]).definition.guests(), [first.clone(), guest("guest-1", "b")]);
    assert_eq!(open(&[]).definition.guests(), [first, guest("guest-1", "b")]);
}

#[test]
fn a_definition_that_no_verb_would_write_is_refused() {
    let (folder, network) = (tempfile::tempdir().unwrap(), network(1, 2));
    stand(&mut open(folder.path(), &network).unwrap(), &network);
    let path = folder.path().join(DEFINITION);
    let whole = fs::read_to_string(&path).unwrap();
    for (was, is) in [
        ("windows = 2", "windows = 0"),
        ("windows = 2", "windows = 100001"),
        ("miners = 1", "miners = 4000000000"),
        ("validators = 1", "validators = 0"),
        ("adversaries = []", "adversaries = [\"noise\"]"),
    ] {
        assert!(whole.contains(was), "{whole}");
        fs::write(&path, whole.replace(was, is)).unwrap();
        for refused in [Kept::read(folder.path()).map(|(kept, _)| kept), open(folder.path(), &network)] {
            assert!(matches!(refused, Err(KeptError::Malformed { .. })), "{is}: {refused:?}");
        }
        let exported = crate::local::export::outcome(folder.path());
        assert!(exported.is_err_and(|error| error.to_string().contains("network.toml")), "{is}");
    }
}

#[test]
fn a_folder_in_which_a_start_was_killed_at_once_is_free() {
    let folder = tempfile::tempdir().unwrap();
    let is_free = || Definition::is_free(folder.path()).unwrap();
    assert!(is_free());
    drop(lock(folder.path()).unwrap());
    fs::write(folder.path().join("network.tmp"), "# How this").unwrap();
    assert!(is_free());
    drop(open(folder.path(), &network(1, 2)).unwrap());
    assert!(!is_free() && !folder.path().join("network.tmp").exists());
    let foreign = tempfile::tempdir().unwrap();
    fs::write(foreign.path().join("letter.txt"), "mine").unwrap();
    assert!(!Definition::is_free(foreign.path()).unwrap());
}

#[test]
fn a_network_that_was_never_set_up_starts_again_and_foreign_folders_are_left_alone() {
    let (folder, network) = (tempfile::tempdir().unwrap(), network(1, 2));
    drop(open(folder.path(), &network).unwrap());
    fs::create_dir(folder.path().join("dataset")).unwrap();
    fs::write(folder.path().join("notes.txt"), "mine").unwrap();
    assert!(matches!(Kept::read(folder.path()), Err(KeptError::NeverStood { .. })));
    drop(open(folder.path(), &network).unwrap());
    assert!(!folder.path().join("dataset").exists() && folder.path().join("notes.txt").exists());
    let foreign = tempfile::tempdir().unwrap();
    fs::create_dir(foreign.path().join("dataset")).unwrap();
    assert!(matches!(Kept::read(foreign.path()), Err(KeptError::NoNetwork { .. })));
    drop(open(foreign.path(), &network).unwrap());
    assert!(foreign.path().join("dataset").exists());
}
