//! Explores a scene, and says what was seen.

use std::fmt::Debug;
use std::hash::Hash;

use stateright::{Checker, Expectation, Model};

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
pub fn explore<M>(
    (model, scene, mistake): (&'static str, &'static str, Option<String>),
    what: M,
    bounds: &Bounds,
) -> Seen
where
    M: Model + Send + Sync + 'static,
    M::State: Clone + Debug + Hash + PartialEq + Send + Sync,
    M::Action: Clone + Debug + PartialEq + Send + Sync,
{
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
        model,
        scene,
        mistake,
        states: checker.unique_state_count(),
        depth: checker.max_depth(),
        is_complete: checker.is_done() && checker.state_count() < bounds.states_max,
        properties: outcomes.collect(),
    }
}
