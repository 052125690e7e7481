//! The models that are served, and the names they answer to.

use std::{
    collections::BTreeMap,
    sync::{Arc, RwLock, RwLockReadGuard},
};

use data::tokenizer::Tokenizer;
use engine::generate::Generator;
use protocol::{Hash, units::RunId};

/// One checkpoint of one run, ready to answer. Cheap to clone: the weights are shared.
#[derive(Clone)]
pub(crate) struct Model {
    /// The run.
    pub(crate) run: RunId,
    /// The run's name.
    pub(crate) run_name: String,
    /// When the run was created, Unix milliseconds; of two runs of one name the newer has it.
    pub(crate) run_created_ms: u64,
    /// The round whose merge made the checkpoint.
    pub(crate) round: u64,
    /// When the checkpoint was stored, Unix milliseconds.
    pub(crate) stored_ms: u64,
    /// Hash of the checkpoint file.
    pub(crate) checkpoint: Hash,
    /// Held-out bits per byte of text, once it is evaluated.
    pub(crate) bits_per_byte: Option<f64>,
    /// The weights.
    pub(crate) generator: Generator,
    /// Text to tokens and back.
    pub(crate) tokenizer: Arc<Tokenizer>,
}

impl Model {
    /// Tokens of prompt and answer together.
    pub(crate) fn context(&self) -> usize {
        self.generator.config().max_position_embeddings
    }

    /// The name that stays with this checkpoint: `run@round`.
    pub(crate) fn pinned_name(&self) -> String {
        format!("{}@{}", self.run_name, self.round)
    }
}

/// All models, swapped as newer checkpoints come. An answer that has begun keeps the model it began with.
#[derive(Default)]
pub(crate) struct Catalogue {
    /// By run: its checkpoints in memory, newest first, never none.
    runs: RwLock<BTreeMap<RunId, Vec<Model>>>,
}

impl Catalogue {
    /// Every name with its model: for each run its own name (the newest checkpoint), then `name@round`, newest first.
    pub(crate) fn list(&self) -> Vec<(String, Model)> {
        let runs = self.read();
        let mut list = Vec::new();
        for models in runs.values().filter(|models| holds_its_name(&runs, models)) {
            list.extend(
                models
                    .first()
                    .map(|newest| (newest.run_name.clone(), newest.clone())),
            );
            list.extend(
                models
                    .iter()
                    .map(|model| (model.pinned_name(), model.clone())),
            );
        }
        list
    }

    /// The model of this name: `run` or `run@round`, the run by its name or its id.
    pub(crate) fn find(&self, name: &str) -> Option<Model> {
        let (run, round) = match name.rsplit_once('@') {
            Some((run, round)) => (run, Some(round.parse::<u64>().ok()?)),
            None => (name, None),
        };
        let runs = self.read();
        let by_id = run.parse::<RunId>().ok().and_then(|id| runs.get(&id));
        let by_name = || {
            runs.values()
                .filter(|models| holds_its_name(&runs, models))
                .find(|models| models.first().is_some_and(|newest| newest.run_name == run))
        };
        let models = by_id.or_else(by_name)?;
        match round {
            None => models.first().cloned(),
            Some(round) => models.iter().find(|model| model.round == round).cloned(),
        }
    }

    /// How many checkpoints are in memory.
    pub(crate) fn checkpoints(&self) -> usize {
        self.read().values().map(Vec::len).sum()
    }

    /// The checkpoints of a run that are in memory, newest first.
    pub(crate) fn of_run(&self, run: RunId) -> Vec<Model> {
        self.read().get(&run).cloned().unwrap_or_default()
    }

    /// Puts these checkpoints, newest first, in the place of the run's former ones.
    pub(crate) fn replace(&self, run: RunId, models: Vec<Model>) {
        let mut runs = self
            .runs
            .write()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if models.is_empty() {
            runs.remove(&run);
        } else {
            runs.insert(run, models);
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, BTreeMap<RunId, Vec<Model>>> {
        self.runs
            .read()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Whether no newer run has the same name.
fn holds_its_name(runs: &BTreeMap<RunId, Vec<Model>>, models: &[Model]) -> bool {
    let Some(newest) = models.first() else {
        return false;
    };
    let rank = |model: &Model| (model.run_created_ms, model.run);
    let others = runs.values().filter_map(|models| models.first());
    others
        .filter(|other| other.run_name == newest.run_name)
        .all(|other| rank(other) <= rank(newest))
}

#[cfg(test)]
mod tests {
    use crate::testing::tiny_model;

    use super::*;

    #[test]
    fn a_run_answers_to_its_name_its_id_and_its_rounds() {
        let catalogue = Catalogue::default();
        let of_round = |round| Model {
            round,
            ..tiny_model("speeches")
        };
        let run = of_round(0).run;
        catalogue.replace(run, vec![of_round(20), of_round(10)]);
        let check = |name: &str, expected: Option<u64>| {
            assert_eq!(
                catalogue.find(name).map(|model| model.round),
                expected,
                "{name}"
            );
        };
        check("speeches", Some(20));
        check("speeches@10", Some(10));
        check("speeches@11", None);
        check("speeches@", None);
        check("speech", None);
        check(&run.to_string(), Some(20));
        check(&format!("{run}@10"), Some(10));
        let names: Vec<String> = catalogue.list().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["speeches", "speeches@20", "speeches@10"]);
    }

    #[test]
    fn the_newer_run_of_a_name_has_it() {
        let catalogue = Catalogue::default();
        for (byte, created, round) in [(1, 5, 100), (2, 9, 7), (3, 2, 200)] {
            let run = RunId(Hash([byte; 32]));
            catalogue.replace(
                run,
                vec![Model {
                    run,
                    run_created_ms: created,
                    round,
                    ..tiny_model("twice")
                }],
            );
        }
        assert_eq!(catalogue.find("twice").map(|model| model.round), Some(7));
        assert_eq!(catalogue.list().len(), 2);
    }
}
