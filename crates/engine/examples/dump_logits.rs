//! Prints the logits of an exported folder as JSON, for `fixtures/check_export.py` to compare with transformers.
//!
//! Arguments: FOLDER TOKEN [TOKEN …]. Output: `{"tokens": [...], "logits": [[...], ...]}`, one row per position.

#![expect(clippy::print_stdout, reason = "its output is its purpose")]

use std::error::Error;
use std::path::Path;
use std::sync::Arc;

use engine::checkpoint::read_folder;
use engine::generate::Generator;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments
        .next()
        .ok_or("usage: dump_logits FOLDER TOKEN [TOKEN ...]")?;
    let tokens = arguments
        .map(|token| token.parse::<u32>())
        .collect::<Result<Vec<_>, _>>()?;
    let (config, parameters) = read_folder(Path::new(&folder))?;
    let mut session = Generator::new(&config, Arc::new(parameters))?.session();
    let mut logits = Vec::with_capacity(tokens.len());
    for &token in &tokens {
        session.prefill(&[token])?;
        logits.push(session.logits()?.to_vec());
    }
    println!(
        "{}",
        serde_json::json!({ "tokens": tokens, "logits": logits })
    );
    Ok(())
}
