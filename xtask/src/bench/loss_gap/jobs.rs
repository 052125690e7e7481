//! From the settings file to what the example is told.

use std::{collections::BTreeMap, fs};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::workspace;

const MILLION: u64 = 1_000_000;

/// `xtask/loss-gap.toml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Settings {
    /// Seeds 1 to this number.
    pub(super) seeds: u64,
    /// Tokens of a run.
    pub(super) tokens: u64,
    warmup_ppm: u64,
    /// How the baseline is tuned.
    pub(super) tuning: Tuning,
    model: Value,
    inner: Value,
    outer: Value,
    rounds: Rounds,
    warm_start: WarmStart,
    /// Who is there, by name.
    pub(super) scenarios: BTreeMap<String, Scenario>,
}

/// How the baseline is tuned.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Tuning {
    /// Tokens of a run.
    pub(super) tokens: u64,
    /// Sequences in one step.
    pub(super) batch_rows: Vec<u32>,
    /// Peaks of the learning rate in 10^-9.
    pub(super) learning_rate_peak_nano: Vec<u64>,
    /// AdamW's second decay in millionths; the first one goes with every batch and rate.
    pub(super) beta2_ppm: Vec<u32>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rounds {
    steps_min: u32,
    steps_max: u32,
    quorum: u32,
    head_start_ppm: u32,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WarmStart {
    share_ppm: u64,
    batch_rows: u32,
    learning_rate_peak_nano: u64,
}

/// Who is there when.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Scenario {
    millisteps: Vec<u32>,
    absent_ppm: u32,
}

/// What the baseline may choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Baseline {
    /// Sequences in one step.
    pub(super) batch_rows: u32,
    /// Peak of the learning rate in 10^-9.
    pub(super) learning_rate_peak_nano: u64,
    /// AdamW's second decay in millionths.
    pub(super) beta2_ppm: u32,
}

/// A run to be done.
#[derive(Clone, Debug)]
pub(super) struct Job {
    /// `baseline`, or the scenario.
    pub(super) name: String,
    /// Its tokens.
    pub(super) tokens: u64,
    /// What the example is told.
    pub(super) json: Value,
}

impl Tuning {
    /// The value of β₂ that batches and rates are compared with.
    pub(super) fn first_beta2(&self) -> Result<u32> {
        self.beta2_ppm
            .first()
            .copied()
            .context("tuning.beta2_ppm is empty")
    }
}

impl Settings {
    /// Reads the file; seeds and tokens may be others.
    pub(super) fn read(seeds: Option<u64>, tokens: Option<u64>) -> Result<Self> {
        let path = workspace::root().join("xtask/loss-gap.toml");
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut settings: Self =
            toml::from_str(&text).with_context(|| format!("{} is malformed", path.display()))?;
        settings.seeds = seeds.unwrap_or(settings.seeds);
        settings.tokens = tokens.unwrap_or(settings.tokens);
        ensure!(0 < settings.seeds, "at least one seed");
        Ok(settings)
    }

    /// One process.
    pub(super) fn baseline(&self, name: &str, seed: u64, tokens: u64, it: Baseline) -> Job {
        let mut inner = self.inner(tokens);
        inner["batch_rows"] = json!(it.batch_rows);
        inner["learning_rate_peak_nano"] = json!(it.learning_rate_peak_nano);
        inner["beta2_ppm"] = json!(it.beta2_ppm);
        self.job(name, seed, tokens, inner, json!("one_process"))
    }

    /// Workers in rounds.
    pub(super) fn scenario(&self, name: &str, seed: u64) -> Result<Job> {
        let scenario = self.scenarios.get(name).context("an unknown scenario")?;
        let workers = json!({
            "outer": self.outer,
            "millisteps": scenario.millisteps,
            "steps_min": self.rounds.steps_min,
            "steps_max": self.rounds.steps_max,
            "quorum": self.rounds.quorum,
            "absent_ppm": scenario.absent_ppm,
            "head_start_ppm": self.rounds.head_start_ppm,
            "warm_start": {
                "tokens": self.tokens * self.warm_start.share_ppm / MILLION,
                "batch_rows": self.warm_start.batch_rows,
                "learning_rate_peak_nano": self.warm_start.learning_rate_peak_nano,
            },
        });
        let plan = json!({ "workers": workers });
        Ok(self.job(name, seed, self.tokens, self.inner(self.tokens), plan))
    }

    fn inner(&self, tokens: u64) -> Value {
        let mut inner = self.inner.clone();
        inner["tokens_max"] = json!(tokens);
        inner["warmup_tokens"] = json!(tokens * self.warmup_ppm / MILLION);
        inner
    }

    fn job(&self, name: &str, seed: u64, tokens: u64, inner: Value, plan: Value) -> Job {
        let json = json!({
            "name": format!("{name}-seed-{seed}"),
            "seed": seed,
            "model": self.model,
            "inner": inner,
            "plan": plan,
        });
        Job {
            name: name.to_owned(),
            tokens,
            json,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_settings_file_makes_jobs() {
        let settings = Settings::read(Some(2), Some(1_000_000)).unwrap();
        let names: Vec<&str> = settings.scenarios.keys().map(String::as_str).collect();
        assert_eq!(names, ["churn", "even", "uneven"]);
        let job = settings.scenario("churn", 2).unwrap();
        assert_eq!(job.json["name"], "churn-seed-2");
        assert_eq!(job.json["inner"]["tokens_max"], 1_000_000);
        assert_eq!(job.json["plan"]["workers"]["absent_ppm"], 300_000);
        assert_eq!(job.json["plan"]["workers"]["quorum"], 4);
        assert!(settings.scenario("nobody", 1).is_err());
        let baseline = Baseline {
            batch_rows: 8,
            learning_rate_peak_nano: 1,
            beta2_ppm: 2,
        };
        let job = settings.baseline("tuning", 1, 500, baseline);
        assert_eq!(job.json["inner"]["batch_rows"], 8);
        assert_eq!(job.json["inner"]["warmup_tokens"], 25);
    }
}
