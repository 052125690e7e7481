//! What an upload shows instead of BOINC's signature: a keyed hash of file, length and expiry. Clients carry it unread, so
//! no key of BOINC's needs to be where the network is.

use protocol::SecretKey;

/// Separates this use of the hub's key from others.
const CONTEXT: &str = "AI@home 2026 BOINC upload token v1";

/// The key of the tokens.
#[derive(Clone)]
pub(super) struct TokenKey([u8; 32]);

impl TokenKey {
    /// Follows from the hub's key: nothing has to be remembered.
    pub(super) fn of(key: &SecretKey) -> Self {
        Self(blake3::derive_key(CONTEXT, key.to_secret_text().as_bytes()))
    }

    /// The token for a file, good until `expires_s` (Unix seconds).
    pub(super) fn token(&self, file: &str, bytes_max: u64, expires_s: u64) -> String {
        format!(
            "v1.{expires_s}.{}",
            self.hash(file, bytes_max, expires_s).to_hex()
        )
    }

    /// Whether a token is this file's and its time is not over.
    pub(super) fn holds(&self, token: &str, file: &str, bytes_max: u64, now_s: u64) -> bool {
        let mut parts = token.trim().split('.');
        let (Some("v1"), Some(expires), Some(hash), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return false;
        };
        let (Ok(expires), Ok(hash)) = (expires.parse(), blake3::Hash::from_hex(hash)) else {
            return false;
        };
        // Hashes compare in constant time.
        now_s <= expires && hash == self.hash(file, bytes_max, expires)
    }

    fn hash(&self, file: &str, bytes_max: u64, expires_s: u64) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(&bytes_max.to_le_bytes());
        hasher.update(&expires_s.to_le_bytes());
        hasher.update(file.as_bytes());
        hasher.finalize()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_of_one_file_length_and_time() {
        let key = TokenKey::of(&SecretKey::from_entropy([1; 32]));
        let token = key.token("t_1_0_r0", 500, 1_000);
        assert!(key.holds(&token, "t_1_0_r0", 500, 1_000));
        assert!(key.holds(&format!("\n{token}"), "t_1_0_r0", 500, 0));
        assert!(!key.holds(&token, "t_1_0_r0", 500, 1_001));
        assert!(!key.holds(&token, "t_1_0_r0", 501, 1_000));
        assert!(!key.holds(&token, "t_2_0_r0", 500, 1_000));
        let other = TokenKey::of(&SecretKey::from_entropy([2; 32]));
        assert!(!other.holds(&token, "t_1_0_r0", 500, 1_000));
        let later = token.replace(".1000.", ".9000.");
        assert!(!key.holds(&later, "t_1_0_r0", 500, 1_000));
        for text in [
            "",
            "v1",
            "v1..",
            "v2.1.ab",
            "v1.1.zz",
            "v1.-1.00",
            &"v1.".repeat(99),
        ] {
            assert!(!key.holds(text, "t_1_0_r0", 500, 0), "{text}");
        }
        for at in 0..token.len() {
            let mut changed = token.clone().into_bytes();
            changed[at] ^= 1;
            let changed = String::from_utf8_lossy(&changed).into_owned();
            assert!(!key.holds(&changed, "t_1_0_r0", 500, 0), "byte {at}");
        }
    }
}
