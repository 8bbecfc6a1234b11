//! The rules of Templar: pure functions over plain values, and every type that is signed or committed.
//!
//! The crate does no I/O, reads no wall clock, uses no random source but the one passed in, and knows neither tensors
//! nor chain types. Anybody with the run's specification and the finalised state of the chain can replay every
//! decision, and an auditor needs nothing else. Integers and + − × ÷ √ decide what nodes must agree on; floats in
//! scores are one validator's opinion.
//!
//! In the order in which a window uses them:
//!
//! | step | module |
//! |---|---|
//! | what all nodes agree on beforehand | [`run`], [`layout`], [`tree`] |
//! | when: windows and deadlines as block numbers | [`clock`] |
//! | who: miners, validators and their stakes at the snapshot | [`roster`], [`locator`], [`bucket`] |
//! | whose contributions may count | [`candidates`] |
//! | which samples a miner trains on | [`assignment`], [`permutation`] |
//! | what a miner binds itself to before anybody can read it | [`header`], [`possession`], [`seal`] |
//! | what goes on chain, in 128 bytes | [`commitment`], [`word`] |
//! | what can be wrong, and who is to blame | [`fault`] |
//! | what the votes say | [`certificate`] |
//! | what the votes were about, for auditors | [`inputs`] |
//! | what is agreed afterwards | [`state`], [`standing`] |
//! | all of it again, for auditors | [`audit`] |
//!
//! ```
//! use templar_protocol::hash::Hash32;
//! use templar_protocol::keys::Keypair;
//! use templar_protocol::run::RunId;
//! use templar_protocol::seal::SealKey;
//!
//! // A miner seals a payload; its header commits to the key, so the ciphertext opens in one way only.
//! let run = RunId(Hash32::of(b"a run"));
//! let key = SealKey::derive(&Keypair::from_seed([7; 32]), run, 3, b"payload");
//! let ciphertext = key.seal(b"payload".to_vec());
//! assert_eq!(key.open(ciphertext, &key.commitment()).unwrap(), b"payload");
//! ```

pub mod assignment;
pub mod audit;
pub mod bucket;
pub mod candidates;
pub mod certificate;
pub mod clock;
pub mod commitment;
pub mod fault;
pub mod hash;
pub mod header;
pub mod inputs;
pub mod keys;
pub mod layout;
pub mod locator;
pub mod permutation;
pub mod possession;
pub mod roster;
pub mod run;
pub mod seal;
pub mod standing;
pub mod state;
#[doc(hidden)]
pub mod testing;
mod theta0;
pub mod tree;
pub mod word;
