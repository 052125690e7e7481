//! Gaps, their mean, and the interval that the true mean lies in with a probability of 95 %.

use anyhow::{Result, ensure};

use super::{
    jobs::Settings,
    runs::{Outcome, Traffic},
};
use crate::bench::report::Figure;

/// Student's t for 95 % on both sides, by degrees of freedom from 1 on.
const STUDENT_T: [f64; 9] = [
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262,
];

/// The figures; `outcomes` are, for each seed, the baseline and the scenarios in their order.
pub(super) fn figures(settings: &Settings, outcomes: &[Option<Outcome>]) -> Result<Vec<Figure>> {
    let seeds: Vec<&[Option<Outcome>]> = outcomes.chunks(1 + settings.scenarios.len()).collect();
    let baseline: Vec<f64> = seeds.iter().filter_map(|it| loss(it, 0)).collect();
    ensure!(!baseline.is_empty(), "no baseline is finished");
    let mut figures = vec![
        Figure::new("loss_baseline", mean(&baseline), "nats/token"),
        Figure::new("loss_baseline_seeds", baseline.len() as f64, "runs"),
        Figure::new("loss_gap_tokens", settings.tokens as f64, "tokens"),
    ];
    for (place, name) in (1..).zip(settings.scenarios.keys()) {
        let gaps: Vec<f64> = seeds
            .iter()
            .filter_map(|it| Some(percent(loss(it, place)?, loss(it, 0)?)))
            .collect();
        if gaps.is_empty() {
            continue;
        }
        figures.push(Figure::new(format!("loss_gap_{name}"), mean(&gaps), "%"));
        if let Some(half) = half_interval(&gaps) {
            figures.push(Figure::new(format!("loss_gap_{name}_95"), half, "% ±"));
        }
        figures.push(Figure::new(
            format!("loss_gap_{name}_seeds"),
            gaps.len() as f64,
            "runs",
        ));
    }
    if let Some(traffic) = traffic(outcomes) {
        figures.extend([
            Figure::new("loss_gap_rounds", traffic.rounds as f64, "rounds"),
            Figure::new(
                "loss_gap_update_bytes",
                traffic.update_bytes_per_parameter,
                "bytes/parameter",
            ),
            Figure::new(
                "loss_gap_delta_bytes",
                traffic.delta_bytes_per_parameter,
                "bytes/parameter",
            ),
        ]);
    }
    Ok(figures)
}

/// By how many percent a loss is above another.
fn percent(loss: f64, baseline: f64) -> f64 {
    (loss / baseline - 1.0) * 100.0
}

fn loss(of_seed: &[Option<Outcome>], place: usize) -> Option<f64> {
    Some(of_seed.get(place)?.as_ref()?.held_out_loss)
}

fn traffic(outcomes: &[Option<Outcome>]) -> Option<Traffic> {
    outcomes.iter().flatten().find_map(|it| it.traffic)
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Half the width of the interval around the mean; none for one value.
fn half_interval(values: &[f64]) -> Option<f64> {
    let freedom = values.len().checked_sub(1).filter(|&it| 0 < it)?;
    let t = STUDENT_T.get(freedom - 1).copied().unwrap_or(2.0);
    let centre = mean(values);
    let squares: f64 = values.iter().map(|it| (it - centre).powi(2)).sum();
    Some(t * (squares / freedom as f64 / values.len() as f64).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_is_students() {
        assert_eq!(half_interval(&[1.0]), None);
        let half = half_interval(&[1.0, 2.0, 3.0]).unwrap();
        // 4.303 × 1 / √3.
        assert!((half - 2.484).abs() < 1e-3, "{half}");
        assert!((percent(2.2, 2.0) - 10.0).abs() < 1e-9);
    }
}
