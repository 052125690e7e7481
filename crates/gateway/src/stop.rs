//! Stop sequences: ends a text before the first one, and never lets a part of one out early.
//!
//! Text goes through character by character, so the result does not depend on where tokens end.

/// Takes text piece by piece and returns what certainly comes before every stop sequence.
#[derive(Debug)]
pub(crate) struct StopFilter {
    stops: Vec<String>,
    /// Text that may be the beginning of a stop sequence; shorter than the longest one.
    held: String,
    stopped: bool,
}

impl StopFilter {
    /// A filter for these sequences; empty ones mean nothing and are left out.
    pub(crate) fn new(stops: Vec<String>) -> Self {
        let stops = stops.into_iter().filter(|stop| !stop.is_empty()).collect();
        Self {
            stops,
            held: String::new(),
            stopped: false,
        }
    }

    /// Takes the next piece and returns the text that is safe to show now, perhaps none.
    pub(crate) fn push(&mut self, text: &str) -> String {
        let mut safe = String::new();
        for character in text.chars() {
            if self.stopped {
                break;
            }
            self.held.push(character);
            let complete = self
                .stops
                .iter()
                .filter(|stop| self.held.ends_with(stop.as_str()));
            if let Some(length) = complete.map(String::len).max() {
                safe.push_str(&self.held[..self.held.len() - length]);
                self.held.clear();
                self.stopped = true;
            } else {
                let keep = self.possible_beginning();
                safe.extend(self.held.drain(..self.held.len() - keep));
            }
        }
        safe
    }

    /// Whether a stop sequence came; nothing is returned from then on.
    pub(crate) fn stopped(&self) -> bool {
        self.stopped
    }

    /// Ends the text: what was held back was no stop sequence after all.
    pub(crate) fn finish(self) -> String {
        self.held
    }

    /// Bytes at the end of the held text that some stop sequence begins with.
    fn possible_beginning(&self) -> usize {
        self.held
            .char_indices()
            .map(|(start, _)| &self.held[start..])
            .find(|rest| self.stops.iter().any(|stop| stop.starts_with(rest)))
            .map_or(0, str::len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every way to cut `text` into pieces of up to three characters gives `expected`, and no piece takes anything back.
    fn check(stops: &[&str], text: &str, expected: &str, stopped: bool) {
        for size in 1..=3 {
            let mut filter = StopFilter::new(stops.iter().map(|&stop| stop.to_owned()).collect());
            let characters: Vec<char> = text.chars().collect();
            let mut shown = String::new();
            for piece in characters.chunks(size) {
                shown.push_str(&filter.push(&piece.iter().collect::<String>()));
                assert!(expected.starts_with(&shown), "{shown:?} of {expected:?}");
            }
            assert_eq!(filter.stopped(), stopped, "{text:?}");
            shown.push_str(&filter.finish());
            assert_eq!(shown, expected, "{text:?} in pieces of {size}");
        }
    }

    #[test]
    fn ends_before_the_first_stop_sequence() {
        check(&["\nUser:"], "Hello.\nUser: and", "Hello.", true);
        check(&["END", "\n"], "a\nbEND", "a", true);
        check(&["x"], "x", "", true);
    }

    #[test]
    fn a_beginning_that_leads_nowhere_is_shown() {
        check(&["\nUser:"], "Hello.\nUseful", "Hello.\nUseful", false);
        check(&["\nUser:"], "Hello.\nUser", "Hello.\nUser", false);
        check(&["aab"], "aaab!", "a", true);
        check(&["abac"], "ababac", "ab", true);
    }

    #[test]
    fn of_two_that_end_together_the_longer_counts() {
        check(&["c", "abc"], "xabc", "x", true);
        check(&["abcd", "c"], "abcd", "ab", true);
    }

    #[test]
    fn works_on_characters_of_several_bytes() {
        check(&["é–"], "caféé–x", "café", true);
        check(&[], "日本", "日本", false);
    }

    #[test]
    fn holds_back_as_little_as_possible() {
        let mut filter = StopFilter::new(vec!["stop".to_owned()]);
        assert_eq!(filter.push("a sto"), "a ");
        assert_eq!(filter.push("n"), "ston");
    }
}
