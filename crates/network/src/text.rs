//! Texts of strangers on the way to a terminal or a log of ours.

/// A stranger's sentence as it may be shown: control characters (which move cursors and rename windows), and what reorders
/// text, become `�`; at most `chars_max` characters.
#[must_use]
pub fn printable(text: &str, chars_max: usize) -> String {
    let mut shown: String = text
        .chars()
        .take(chars_max)
        .map(|it| if is_harmless(it) { it } else { '\u{fffd}' })
        .collect();
    if text.chars().nth(chars_max).is_some() {
        shown.push('…');
    }
    shown
}

fn is_harmless(character: char) -> bool {
    let reorders = matches!(
        character,
        '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
    );
    !character.is_control() && !reorders
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stranger_does_not_steer_the_terminal() {
        assert_eq!(printable("too late, ça va", 99), "too late, ça va");
        assert_eq!(printable("a\u{1b}[2Jb\nc\u{202e}", 99), "a�[2Jb�c�");
        assert_eq!(printable("äbcdef", 3), "äbc…");
    }
}
