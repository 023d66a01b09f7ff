//! What the scenes of all models have in common: they are explored, with and without a rule broken, and it is said
//! what was seen.

use std::fmt::Debug;
use std::hash::Hash;

use clap::ValueEnum;
use stateright::{Checker, Expectation, Model};

/// A part of a model, small enough to be explored to its end.
pub trait Scene:
    Model<
        State: Clone + Debug + Hash + PartialEq + Send + Sync,
        Action: Clone + Debug + PartialEq + Send + Sync,
    > + Clone
    + Send
    + Sync
    + 'static
{
    /// Rules that are broken on purpose.
    type Mistake: ValueEnum + Copy + Debug + PartialEq + 'static;
    /// The name of the model.
    const MODEL: &'static str;

    /// All scenes of the model, as they should be.
    fn all() -> Vec<Self>;
    fn name(&self) -> &'static str;
    /// The mistakes that must show here.
    fn finds(&self) -> &'static [Self::Mistake];
    fn mistake(&self) -> Option<Self::Mistake>;
    /// The scene with a rule broken.
    #[must_use]
    fn with(self, mistake: Self::Mistake) -> Self;

    /// The rule that is broken, as it is called on the command line.
    fn broken_rule(&self) -> Option<String> {
        let value = self.mistake()?.to_possible_value()?;
        Some(value.get_name().to_owned())
    }
}

/// [`Scene`] for the `Scene` of a model with these fields, which lists them by a function `scenes`.
macro_rules! scene {
    ($model:literal) => {
        impl $crate::check::Scene for Scene {
            type Mistake = Mistake;
            const MODEL: &'static str = $model;

            fn all() -> Vec<Self> {
                scenes()
            }

            fn name(&self) -> &'static str {
                self.name
            }

            fn finds(&self) -> &'static [Mistake] {
                self.finds
            }

            fn mistake(&self) -> Option<Mistake> {
                self.mistake
            }

            fn with(mut self, mistake: Mistake) -> Self {
                self.mistake = Some(mistake);
                self
            }
        }
    };
}
pub(crate) use scene;

/// How far exploring goes.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub threads: usize,
    /// States at most: a few hundred bytes of memory each.
    pub states_max: usize,
}

/// What exploring one scene showed.
#[derive(Debug)]
pub struct Seen {
    pub model: &'static str,
    pub scene: &'static str,
    /// The rule that was broken on purpose.
    pub mistake: Option<String>,
    /// Different states; the longest way to one; whether all were seen.
    pub states: usize,
    pub depth: usize,
    pub is_complete: bool,
    pub properties: Vec<Outcome>,
}

#[derive(Debug)]
pub struct Outcome {
    pub property: &'static str,
    pub holds: bool,
    /// The steps that break it, if it must always hold.
    pub steps: Vec<String>,
}

impl Seen {
    /// All properties hold, and every state was seen.
    pub fn is_clean(&self) -> bool {
        self.is_complete && self.properties.iter().all(|it| it.holds)
    }

    /// Clean as it is; and found, if a rule was broken on purpose.
    pub fn is_as_it_must(&self) -> bool {
        match self.mistake {
            None => self.is_clean(),
            Some(_) => self.found().is_some(),
        }
    }

    /// What was broken by the mistake: with the shortest way there.
    pub fn found(&self) -> Option<&Outcome> {
        self.properties.iter().find(|it| !it.steps.is_empty())
    }
}

/// Explores every state that a scene can reach, the nearest first. Ends early once a property is broken, if a
/// rule was broken on purpose.
pub fn explore<S: Scene>(what: S, bounds: &Bounds) -> Seen {
    let (scene, mistake) = (what.name(), what.broken_rule());
    let properties = what.properties();
    let builder = what.checker().threads(bounds.threads);
    let mut builder = builder.target_state_count(bounds.states_max);
    if mistake.is_some() {
        builder = builder.finish_when(stateright::HasDiscoveries::AnyFailures);
    }
    let checker = builder.spawn_bfs().join();
    let outcomes = properties.iter().map(|property| {
        let discovery = checker.discovery(property.name);
        let (holds, steps) = match (&property.expectation, discovery) {
            (Expectation::Sometimes, found) => (found.is_some(), Vec::new()),
            (_, None) => (true, Vec::new()),
            (_, Some(path)) => {
                let steps = path.into_actions();
                (
                    false,
                    steps.iter().map(|step| format!("{step:?}")).collect(),
                )
            }
        };
        Outcome {
            property: property.name,
            holds,
            steps,
        }
    });
    Seen {
        model: S::MODEL,
        scene,
        mistake,
        states: checker.unique_state_count(),
        depth: checker.max_depth(),
        is_complete: checker.is_done() && checker.state_count() < bounds.states_max,
        properties: outcomes.collect(),
    }
}
