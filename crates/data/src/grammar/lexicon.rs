//! The words of the built-in corpus, and how often each is drawn where.
//!
//! Words are short, so that a byte carries enough information, and inflect by "s" alone, so that all forms differ.

use templar_protocol::hash::Stream;

/// Nouns that act.
pub(super) const ACTORS: &str = "cat dog cow hen pig bat rat owl ant bee imp king cook boy girl aunt son nun monk duke \
    lord maid bard crow duck swan goat lamb mole toad frog newt hare bear lion seal crab slug worm moth hawk dove lark \
    wren gull mule colt foal pup cub kid nurse clerk smith baker pilot poet scout tailor twin chef guest judge queen";

/// Nouns that are acted upon.
pub(super) const THINGS: &str = "cup pan pot map pen bag hat cap coat boot sock drum bell flag rope nail axe hook net \
    oar sail lamp bowl fork spoon plate jug jar tin can lid book card coin ring pearl gem stone brick log seed nut plum \
    pear fig egg bun pie cake ham bean rose vase clock key lock chain wheel cart sled raft tent quilt harp";

/// Verbs that take an object.
pub(super) const DEEDS: &str = "see find want need like love hate hold take keep hide lose sell buy lend bring pull \
    lift drop kick bend paint draw clean fill steal burn move roll spin turn shake trade break mend test count weigh \
    cover open use spot share throw grab own trust praise";

/// Verbs that take no object.
pub(super) const STATES: &str = "sleep run sing hop swim wait nap smile laugh rest sit walk jump snore yawn wave nod \
    bow kneel dream dance work hum frown blink leave win sneeze";

pub(super) const QUALITIES: &str = "red big old new hot cold wet dry sad shy odd fat thin tall short wise bold calm dark \
    pale blue pink grey gold green brown black white warm cool soft hard loud slow fast fresh clear cheap rich poor kind \
    mean proud vain wild tame weak strong sharp blunt round flat wide deep plain neat rude brave quick lazy tiny huge \
    young small";

pub(super) const OPENERS: &str = "now today soon then once often later here there again";
pub(super) const ONE: &str = "one this each my our her his your that the";
pub(super) const MANY: &str = "two some many these few all those both";
/// Numbers are written in digits, which are cheap to learn and carry more information per byte than any word.
pub(super) const NUMBERS: std::ops::RangeInclusive<u32> = 3..=99;
pub(super) const RELATIONS: &str = "near by at past in on under over";
pub(super) const PLACES: &str = "barn hut cave wood lake pond hill farm mill yard shed park camp dock fort inn shop hall \
    tower bridge road field river garden";

/// The number of kinds of words. A word is more likely to be followed by words of its own kind.
pub(super) const KINDS: usize = 4;
/// How many times more likely.
const PREFERENCE: u32 = 5;

/// Words of one part of speech with the weights that the seed gave them.
#[derive(Debug, Clone)]
pub(super) struct Words {
    pub(super) list: Vec<(&'static str, u32)>,
}

impl Words {
    /// Weights fall about as 1 ÷ (rank + `shift`); the seed decides which word has which rank.
    pub(super) fn new(words: &'static str, shift: u32, seed: &mut Stream) -> Self {
        let words: Vec<_> = words.split_ascii_whitespace().collect();
        let mut ranks: Vec<u32> = (0..words.len() as u32).collect();
        seed.shuffle(&mut ranks);
        let list = words.into_iter().zip(ranks).map(|(word, rank)| (word, 60_000 / (rank + shift))).collect();
        Self { list }
    }

    /// The kind of the word at `index`. Weights and kinds are independent, since the seed shuffled the ranks.
    pub(super) fn kind(index: usize) -> usize {
        index % KINDS
    }

    /// (index, word, weight), after a word of `kind`.
    pub(super) fn after(&self, kind: Option<usize>) -> impl Iterator<Item = (usize, &'static str, u32)> {
        self.list.iter().enumerate().map(move |(index, &(word, weight))| {
            let preferred = kind == Some(Self::kind(index));
            (index, word, if preferred { weight * PREFERENCE } else { weight })
        })
    }
}
