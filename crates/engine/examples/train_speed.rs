//! Trains one of the benchmark's two models on one thread and prints its speed and its largest resident memory.
//!
//! Arguments: `a` or `b`, and the number of timed steps. Output: `key value` lines. The peer that it is measured against is
//! `benches/peer/torch_speed.py`: same shapes, same token ids, same optimiser.

#![expect(clippy::print_stdout, reason = "its output is its purpose")]

use std::error::Error;
use std::time::Instant;

use engine::train::{OptimizerSettings, Trainer};
use engine::{ModelConfig, initial_parameters};

/// Steps before the clock starts.
const WARM_UP_STEPS: usize = 3;

fn config(name: &str) -> Result<(ModelConfig, usize), String> {
    let (shape, batch) = match name {
        "a" => ([4096, 384, 1024, 6, 6, 256], 8),
        "b" => ([512, 128, 352, 4, 4, 128], 16),
        other => return Err(format!("model {other}: a or b")),
    };
    let [
        vocab_size,
        hidden_size,
        intermediate_size,
        num_hidden_layers,
        heads,
        context,
    ] = shape;
    let config = ModelConfig {
        vocab_size,
        hidden_size,
        intermediate_size,
        num_hidden_layers,
        num_attention_heads: heads,
        num_key_value_heads: heads,
        max_position_embeddings: context,
        rms_norm_eps: 1e-5,
        rope_theta: 10_000.0,
        tie_word_embeddings: true,
        bos_token_id: None,
        eos_token_id: None,
        initializer_range: 0.02,
    };
    Ok((config, batch))
}

/// Token ids with some structure, the same as the peer's.
fn tokens(step: usize, count: usize, vocabulary: usize) -> Vec<u32> {
    (0..count)
        .map(|index| ((index * index + 7 * step + index * 3) % vocabulary) as u32)
        .collect()
}

/// Seconds that this process has spent on a processor, where the system tells: steadier than the clock on a busy machine.
fn processor_seconds() -> Option<f64> {
    let statistics = std::fs::read_to_string("/proc/self/schedstat").ok()?;
    Some(statistics.split_whitespace().next()?.parse::<f64>().ok()? / 1e9)
}

/// The largest resident memory of this process so far, where the system tells.
fn peak_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let name = arguments.next().ok_or("usage: train_speed a|b STEPS")?;
    let steps: usize = arguments
        .next()
        .ok_or("usage: train_speed a|b STEPS")?
        .parse()?;
    let (config, batch) = config(&name)?;
    let sequence = config.max_position_embeddings;
    let mut trainer = Trainer::new(&config, batch, sequence, 1);
    trainer
        .parameters_mut()
        .copy_from_slice(&initial_parameters(&config, 1));
    let settings = OptimizerSettings {
        beta2: 0.95,
        ..OptimizerSettings::default()
    };
    let mut started = Instant::now();
    let mut processor_started = None;
    let mut loss = 0.0;
    for step in 0..WARM_UP_STEPS + steps {
        if step == WARM_UP_STEPS {
            started = Instant::now();
            processor_started = processor_seconds();
        }
        let batch = tokens(step, batch * (sequence + 1), config.vocab_size);
        loss = trainer.step(&batch, 1e-3, &settings)?.loss;
    }
    let seconds = started.elapsed().as_secs_f64();
    let processor = processor_seconds()
        .zip(processor_started)
        .map(|(end, start)| end - start);
    println!("model {name}");
    println!("parameters {}", config.parameter_count());
    println!("class {}", engine::arithmetic::class());
    println!("loss {loss}");
    println!(
        "tokens_per_second {:.1}",
        (steps * batch * sequence) as f64 / seconds
    );
    if let Some(processor) = processor {
        println!(
            "tokens_per_processor_second {:.1}",
            (steps * batch * sequence) as f64 / processor
        );
    }
    println!(
        "planned_bytes {}",
        Trainer::memory_bytes(&config, batch, sequence)
    );
    println!(
        "peak_bytes {}",
        peak_bytes().ok_or("the system does not tell its memory")?
    );
    Ok(())
}
