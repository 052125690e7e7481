//! The recovery phrase: an account's key as 24 words of BIP 39's English list, the last of which checks the others.

use anyhow::{Context as _, ensure};
use bip39::{Language, Mnemonic};
use data_encoding::HEXLOWER;
use protocol::SecretKey;

/// Words of a phrase: 32 bytes and a check.
const WORDS: usize = 24;
/// Words on a line, where they are to be copied by hand.
const WORDS_A_LINE: usize = 6;

/// The phrase of a key.
pub(super) fn of(key: &SecretKey) -> String {
    let entropy = HEXLOWER
        .decode(key.to_secret_text().as_bytes())
        .expect("a key's text is hexadecimal");
    let mnemonic = Mnemonic::from_entropy(&entropy).expect("32 bytes make 24 words");
    mnemonic.to_string()
}

/// The key of a phrase.
pub(super) fn read(text: &str) -> anyhow::Result<SecretKey> {
    let words: Vec<String> = text
        .split_whitespace()
        // Whoever copies the numbers too means the words.
        .map(|it| it.trim_matches(|it: char| it.is_ascii_digit() || it == '.' || it == ','))
        .filter(|it| !it.is_empty())
        .map(str::to_lowercase)
        .collect();
    ensure!(
        words.len() == WORDS,
        "a phrase has {WORDS} words, and these are {}",
        words.len()
    );
    let mnemonic = Mnemonic::parse_in_normalized(Language::English, &words.join(" "))
        .context("that is no phrase of an account: a word is misspelt or in another's place")?;
    let entropy: [u8; 32] = mnemonic
        .to_entropy()
        .try_into()
        .expect("24 words are 32 bytes");
    Ok(SecretKey::from_entropy(entropy))
}

/// The phrase for copying by hand: numbered, a few on a line.
pub(super) fn lines(phrase: &str) -> String {
    let words: Vec<String> = phrase
        .split(' ')
        .enumerate()
        .map(|(at, word)| format!("{:>2}. {word:<8}", at + 1))
        .collect();
    words
        .chunks(WORDS_A_LINE)
        .map(|it| format!("  {}", it.join("  ").trim_end()))
        .collect::<Vec<_>>()
        .join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// BIP 39's own test vector of 32 bytes.
    const VECTOR: (&str, &str) = (
        "68a79eaca2324873eacc50cb9c6eca8cc68ea5d936f98787c60c7ebc74e6ce7c",
        "hamster diagram private dutch cause delay private meat slide toddler razor book happy fancy gospel tennis maple \
         dilemma loan word shrug inflict delay length",
    );

    #[test]
    fn the_words_are_the_standards() {
        let key = SecretKey::from_text(VECTOR.0).unwrap();
        assert_eq!(of(&key), VECTOR.1);
    }

    #[test]
    fn words_bring_the_key_back_however_they_were_copied() {
        let key = SecretKey::from_text(VECTOR.0).unwrap();
        for text in [
            VECTOR.1.to_owned(),
            VECTOR.1.to_uppercase(),
            lines(VECTOR.1),
        ] {
            assert_eq!(read(&text).unwrap().public(), key.public(), "{text}");
        }
    }

    #[test]
    fn a_wrong_word_is_noticed() {
        for text in [
            "",
            "hamster",
            &VECTOR.1.replace("hamster", "hamstre"),
            &VECTOR.1.replace("hamster", "maple"),
            &VECTOR.1.replace("hamster diagram", "diagram hamster"),
        ] {
            assert!(read(text).is_err(), "{text}");
        }
    }
}
