//! The grammar's states, what may follow in each, and where each choice leads.
//!
//! ```text
//! sentence  → [opener] actor-phrase [who deeds thing-phrase] deeds thing-phrase tail "."
//! phrase    → (determiner | number) [quality] noun      number agrees; a noun prefers its quality's kind
//! tail      → nothing
//!           | relation determiner place
//!           | (because | until | while) "the" actor, the sentence's own, and what it does alone
//!           | (but | though | so) "the" thing, the sentence's own, is or are, and a quality
//! ```
//!
//! Verbs agree with their actor in number, across the relative clause too, and prefer its kind; things prefer the kind
//! of their verb. So there is something to learn from letters, words, neighbouring words and distant words.

use templar_protocol::hash::Stream;

use crate::grammar::lexicon::{self, KINDS, Words};
use crate::grammar::menu::{Menu, Pick};

/// A noun that may return.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Noun {
    index: usize,
    plural: bool,
}

/// The position within a sentence: which menu is open, and which past choices still matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum State {
    Start,
    ActorDeterminer,
    ActorPhrase { plural: bool },
    Actor { plural: bool, kind: usize },
    AfterActor { actor: Noun },
    RelativeDeed { actor: Noun },
    RelativeDeterminer { actor: Noun, kind: usize },
    RelativePhrase { actor: Noun, kind: usize, plural: bool },
    RelativeThing { actor: Noun, kind: usize, plural: bool },
    Deed { actor: Noun },
    ThingDeterminer { actor: Noun, kind: usize },
    ThingPhrase { actor: Noun, kind: usize, plural: bool },
    Thing { actor: Noun, kind: usize, plural: bool },
    Tail { actor: Noun, thing: Noun },
    PlaceDeterminer,
    Place,
    ActorAgainThe { actor: Noun },
    ActorAgain { actor: Noun },
    ActorAlone { actor: Noun },
    ThingAgainThe { thing: Noun },
    ThingAgain { thing: Noun },
    ThingIs { plural: bool },
    ThingQuality,
    End,
}

/// Two menus: singular and plural.
type ByNumber = [Menu; 2];

/// All menus of one seed.
#[derive(Debug, Clone)]
pub(super) struct Rules {
    start: Menu,
    determiner: Menu,
    actor_phrase: ByNumber,
    actor: [ByNumber; KINDS],
    after_actor: [ByNumber; KINDS],
    deed: [ByNumber; KINDS],
    thing_phrase: [ByNumber; KINDS],
    thing: [ByNumber; KINDS],
    tail: Menu,
    the: Menu,
    place_determiner: Menu,
    place: Menu,
    state: [ByNumber; KINDS],
    actor_again: Vec<ByNumber>,
    thing_again: Vec<ByNumber>,
    is: ByNumber,
    quality: Menu,
    end: Menu,
}

impl Rules {
    pub(super) fn new(seed: &mut Stream) -> Self {
        let mut words = |list, shift| Words::new(list, shift, seed);
        let (actors, things) = (words(lexicon::ACTORS, 24), words(lexicon::THINGS, 24));
        let (deeds, states) = (words(lexicon::DEEDS, 16), words(lexicon::STATES, 12));
        let qualities = words(lexicon::QUALITIES, 24);
        let (openers, relations, places) =
            (words(lexicon::OPENERS, 8), words(lexicon::RELATIONS, 8), words(lexicon::PLACES, 12));
        let (one, many) = (words(lexicon::ONE, 8), words(lexicon::MANY, 8));

        let plural = Pick::Determiner { plural: true };
        let numbers = Menu::new(lexicon::NUMBERS.map(|number| (number.to_string(), 1, plural)));
        let determiner = plain(&one, Pick::Determiner { plural: false }).or(60, plain(&many, plural).or(75, numbers));
        let tail_words = |list: [&str; 3], pick| Menu::new(list.map(|word| (word.to_owned(), 1, pick)));
        let tail = Menu::one(".", Pick::Stop)
            .or(45, plain(&relations, Pick::Relation))
            .or(20, tail_words(["because", "until", "while"], Pick::ActorAgain))
            .or(15, tail_words(["but", "though", "so"], Pick::ThingAgain));
        let deed = by_kind(|kind, plural| verbs(&deeds, kind, plural));
        Self {
            start: determiner.clone().or(25, plain(&openers, Pick::Opener)),
            determiner,
            actor_phrase: by_number(|plural| nouns(&actors, None, plural).or(45, adjectives(&qualities, None))),
            actor: by_kind(|kind, plural| nouns(&actors, Some(kind), plural)),
            after_actor: by_kind(|kind, plural| verbs(&deeds, kind, plural).or(25, Menu::one("who", Pick::Who))),
            deed,
            thing_phrase: by_kind(|kind, plural| {
                nouns(&things, Some(kind), plural).or(45, adjectives(&qualities, Some(kind)))
            }),
            thing: by_kind(|kind, plural| nouns(&things, Some(kind), plural)),
            tail,
            the: Menu::one("the", Pick::Plain),
            place_determiner: plain(&one, Pick::Plain),
            place: plain(&places, Pick::Plain),
            state: by_kind(|kind, plural| verbs(&states, kind, plural)),
            actor_again: again(&actors),
            thing_again: again(&things),
            is: by_number(|plural| Menu::one(if plural { "are" } else { "is" }, Pick::Plain)),
            quality: plain(&qualities, Pick::Plain),
            end: Menu::one(".", Pick::Stop),
        }
    }

    /// The menu of a state: what may come next.
    pub(super) fn menu(&self, state: State) -> &Menu {
        let number = usize::from;
        match state {
            State::Start => &self.start,
            State::ActorDeterminer | State::RelativeDeterminer { .. } | State::ThingDeterminer { .. } => {
                &self.determiner
            }
            State::ActorPhrase { plural } => &self.actor_phrase[number(plural)],
            State::Actor { plural, kind } => &self.actor[kind][number(plural)],
            State::AfterActor { actor } => &self.after_actor[Words::kind(actor.index)][number(actor.plural)],
            State::RelativeDeed { actor } | State::Deed { actor } => {
                &self.deed[Words::kind(actor.index)][number(actor.plural)]
            }
            State::RelativePhrase { kind, plural, .. } | State::ThingPhrase { kind, plural, .. } => {
                &self.thing_phrase[kind][number(plural)]
            }
            State::RelativeThing { kind, plural, .. } | State::Thing { kind, plural, .. } => {
                &self.thing[kind][number(plural)]
            }
            State::Tail { .. } => &self.tail,
            State::PlaceDeterminer => &self.place_determiner,
            State::ActorAgainThe { .. } | State::ThingAgainThe { .. } => &self.the,
            State::Place => &self.place,
            State::ActorAgain { actor } => &self.actor_again[actor.index][number(actor.plural)],
            State::ActorAlone { actor } => &self.state[Words::kind(actor.index)][number(actor.plural)],
            State::ThingAgain { thing } => &self.thing_again[thing.index][number(thing.plural)],
            State::ThingIs { plural } => &self.is[number(plural)],
            State::ThingQuality => &self.quality,
            State::End => &self.end,
        }
    }
}

impl State {
    /// Where a choice from this state's menu leads; `None` after the end of the sentence.
    pub(super) fn after(self, pick: Pick) -> Option<Self> {
        Some(match (self, pick) {
            (_, Pick::Stop) => return None,
            (Self::Start, Pick::Opener) => Self::ActorDeterminer,
            (Self::Start | Self::ActorDeterminer, Pick::Determiner { plural }) => Self::ActorPhrase { plural },
            (Self::ActorPhrase { plural }, Pick::Quality { kind }) => Self::Actor { plural, kind },
            (Self::ActorPhrase { plural } | Self::Actor { plural, .. }, Pick::Noun { index }) => {
                Self::AfterActor { actor: Noun { index, plural } }
            }
            (Self::AfterActor { actor }, Pick::Who) => Self::RelativeDeed { actor },
            (Self::RelativeDeed { actor }, Pick::Verb { kind }) => Self::RelativeDeterminer { actor, kind },
            (Self::RelativeDeterminer { actor, kind }, Pick::Determiner { plural }) => {
                Self::RelativePhrase { actor, kind, plural }
            }
            (Self::RelativePhrase { actor, plural, .. }, Pick::Quality { kind }) => {
                Self::RelativeThing { actor, kind, plural }
            }
            (Self::RelativePhrase { actor, .. } | Self::RelativeThing { actor, .. }, _) => Self::Deed { actor },
            (Self::AfterActor { actor } | Self::Deed { actor }, Pick::Verb { kind }) => {
                Self::ThingDeterminer { actor, kind }
            }
            (Self::ThingDeterminer { actor, kind }, Pick::Determiner { plural }) => {
                Self::ThingPhrase { actor, kind, plural }
            }
            (Self::ThingPhrase { actor, plural, .. }, Pick::Quality { kind }) => Self::Thing { actor, kind, plural },
            (Self::ThingPhrase { actor, plural, .. } | Self::Thing { actor, plural, .. }, Pick::Noun { index }) => {
                Self::Tail { actor, thing: Noun { index, plural } }
            }
            (Self::Tail { .. }, Pick::Relation) => Self::PlaceDeterminer,
            (Self::PlaceDeterminer, _) => Self::Place,
            (Self::Tail { actor, .. }, Pick::ActorAgain) => Self::ActorAgainThe { actor },
            (Self::ActorAgainThe { actor }, _) => Self::ActorAgain { actor },
            (Self::ActorAgain { actor }, _) => Self::ActorAlone { actor },
            (Self::Tail { thing, .. }, Pick::ThingAgain) => Self::ThingAgainThe { thing },
            (Self::ThingAgainThe { thing }, _) => Self::ThingAgain { thing },
            (Self::ThingAgain { thing }, _) => Self::ThingIs { plural: thing.plural },
            (Self::ThingIs { .. }, _) => Self::ThingQuality,
            (Self::Place | Self::ActorAlone { .. } | Self::ThingQuality, _) => Self::End,
            (state, pick) => unreachable!("the menu of {state:?} does not offer {pick:?}"),
        })
    }
}

fn by_number(menu: impl Fn(bool) -> Menu) -> ByNumber {
    [menu(false), menu(true)]
}

fn by_kind(menu: impl Fn(usize, bool) -> Menu) -> [ByNumber; KINDS] {
    std::array::from_fn(|kind| by_number(|plural| menu(kind, plural)))
}

/// One menu per noun, with that noun alone, because it returns unchanged.
fn again(words: &Words) -> Vec<ByNumber> {
    let menu = |word: &str, plural| Menu::one(noun_form(word, plural), Pick::Plain);
    words.list.iter().map(|(word, _)| by_number(|plural| menu(word, plural))).collect()
}

fn plain(words: &Words, pick: Pick) -> Menu {
    Menu::new(words.after(None).map(|(_, word, weight)| (word.to_owned(), weight, pick)))
}

fn adjectives(words: &Words, kind: Option<usize>) -> Menu {
    let entry = |(index, word, weight): (usize, &str, u32)| {
        (word.to_owned(), weight, Pick::Quality { kind: Words::kind(index) })
    };
    Menu::new(words.after(kind).map(entry))
}

fn nouns(words: &Words, kind: Option<usize>, plural: bool) -> Menu {
    Menu::new(words.after(kind).map(|(index, word, weight)| (noun_form(word, plural), weight, Pick::Noun { index })))
}

fn verbs(words: &Words, kind: usize, plural: bool) -> Menu {
    let entry = |(index, word, weight): (usize, &str, u32)| {
        // A verb has its "s" where a noun has none.
        (noun_form(word, !plural), weight, Pick::Verb { kind: Words::kind(index) })
    };
    Menu::new(words.after(Some(kind)).map(entry))
}

fn noun_form(word: &str, with_s: bool) -> String {
    format!("{word}{}", if with_s { "s" } else { "" })
}
