//! What a worker shows with its polls, so that nobody else is present in its name.
//!
//! A keyed hash of run and worker: nothing has to be remembered, and the token stays the same across restarts. Whoever takes
//! the run over has another key; workers then join again and get another token.

use axum::http::{HeaderMap, header};
use protocol::{
    SecretKey,
    units::{RunId, WorkerId},
};

/// Separates this use of the hub's key from its signatures.
const CONTEXT: &str = "AI@home 2026 worker poll token v1";

/// The token of a worker in a run.
pub(super) fn of(key: &SecretKey, run: RunId, worker: WorkerId) -> String {
    hash(key, run, worker).to_hex().to_string()
}

/// Whether a request shows it.
pub(super) fn is_shown(headers: &HeaderMap, key: &SecretKey, run: RunId, worker: WorkerId) -> bool {
    let shown = headers
        .get(header::AUTHORIZATION)
        .and_then(|it| it.to_str().ok()?.strip_prefix("Bearer "))
        .and_then(|it| blake3::Hash::from_hex(it).ok());
    // Hashes compare in constant time.
    shown.is_some_and(|it| it == hash(key, run, worker))
}

fn hash(key: &SecretKey, run: RunId, worker: WorkerId) -> blake3::Hash {
    let key = blake3::derive_key(CONTEXT, key.to_secret_text().as_bytes());
    let mut hasher = blake3::Hasher::new_keyed(&key);
    hasher.update(&run.0.0);
    hasher.update(&worker.0.0);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use protocol::Hash;

    use super::*;

    #[test]
    fn a_token_is_of_one_hub_run_and_worker() {
        let [ours, other] = [[1; 32], [2; 32]].map(SecretKey::from_entropy);
        let worker = |byte| WorkerId(SecretKey::from_entropy([byte; 32]).public());
        let (run, worker_id) = (RunId(Hash([3; 32])), worker(4));
        let token = of(&ours, run, worker_id);
        assert_eq!(token.len(), 64);
        let check = |shown: &str, expected| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, shown.parse().unwrap());
            assert_eq!(
                is_shown(&headers, &ours, run, worker_id),
                expected,
                "{shown}"
            );
        };
        check(&format!("Bearer {token}"), true);
        check(&token, false);
        check("Bearer ", false);
        check(&format!("Bearer {}", of(&other, run, worker_id)), false);
        check(&format!("Bearer {}", of(&ours, run, worker(5))), false);
        check(
            &format!("Bearer {}", of(&ours, RunId(Hash([6; 32])), worker_id)),
            false,
        );
        assert!(!is_shown(&HeaderMap::new(), &ours, run, worker_id));
    }
}
