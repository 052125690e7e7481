//! The XML that BOINC clients send: small, old, and not always XML. Read into a bounded tree.
//!
//! What an application or a user wrote stands in it unescaped. Those areas are cut out first and come back as plain text;
//! what is left is read by a parser that forgives what old clients do. Anything worse is refused, and the client is told.

use std::borrow::Cow;

use quick_xml::{Reader, events::Event};

/// Elements inside each other.
const DEPTH_MAX: usize = 12;
/// Elements of a message.
const ELEMENTS_MAX: usize = 20_000;
/// Bytes of an element's text; the rest is left out.
const TEXT_BYTES_MAX: usize = 16 * 1024;
/// Bytes of an element's name.
const NAME_BYTES_MAX: usize = 64;
/// Areas that are cut out; more are dropped.
const RAW_MAX: usize = 1_024;
/// What applications and users write as they like.
const RAW_NAMES: [&str; 3] = ["stderr_out", "msg_from_host", "client_opaque"];

/// An element with what is in it; attributes are not looked at.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Element {
    name: String,
    text: String,
    children: Vec<Self>,
}

/// Why a message was refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum XmlError {
    #[error("the request does not read near byte {0}")]
    Syntax(u64),
    #[error("the request has elements inside each other more than {DEPTH_MAX} deep")]
    Deep,
    #[error("the request has more than {ELEMENTS_MAX} elements")]
    Many,
    #[error("the request is empty or cut")]
    Cut,
}

impl Element {
    /// Reads a message: its first element, which must be closed.
    pub(crate) fn read(bytes: &[u8]) -> Result<Self, XmlError> {
        // Most are what they should be, and that is seen faster than it is mended.
        let text = match std::str::from_utf8(bytes) {
            Ok(text) => Cow::Borrowed(text),
            Err(_) => String::from_utf8_lossy(bytes),
        };
        let (text, mut raw) = cut_raw(&text);
        let mut reader = Reader::from_str(&text);
        let config = reader.config_mut();
        config.allow_dangling_amp = true;
        config.allow_unmatched_ends = true;
        config.check_end_names = false;
        let mut open: Vec<Self> = Vec::new();
        let mut count = 0;
        loop {
            let event = reader
                .read_event()
                .map_err(|_| XmlError::Syntax(reader.error_position()))?;
            match event {
                Event::Start(start) => {
                    count_one(&mut count)?;
                    if open.len() >= DEPTH_MAX {
                        return Err(XmlError::Deep);
                    }
                    open.push(Self::named(start.local_name().as_ref()));
                }
                Event::Empty(start) => {
                    count_one(&mut count)?;
                    if let Some(parent) = open.last_mut() {
                        parent
                            .children
                            .push(Self::named(start.local_name().as_ref()));
                    }
                }
                Event::End(_) => {
                    let Some(mut ended) = open.pop() else {
                        continue;
                    };
                    ended.restore(&mut raw);
                    match open.last_mut() {
                        Some(parent) => parent.children.push(ended),
                        None => return Ok(ended),
                    }
                }
                Event::Text(text) => add(&mut open, &text),
                Event::CData(text) => add(&mut open, &text),
                Event::GeneralRef(name) => add(&mut open, &meant_by(&name)),
                Event::Eof => return Err(XmlError::Cut),
                Event::Decl(_) | Event::PI(_) | Event::DocType(_) | Event::Comment(_) => {}
            }
        }
    }

    fn named(name: &str) -> Self {
        Self {
            name: cut(name, NAME_BYTES_MAX).to_owned(),
            ..Self::default()
        }
    }

    /// Puts an area back that was cut out: the text of its element is the area's number.
    fn restore(&mut self, raw: &mut [String]) {
        if RAW_NAMES.contains(&self.name.as_str()) {
            let number: Option<usize> = self.text.trim().parse().ok();
            let area = number.and_then(|it| raw.get_mut(it));
            self.text = area.map(std::mem::take).unwrap_or_default();
        }
    }

    /// Its name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Its text, without space around it.
    pub(crate) fn text(&self) -> &str {
        self.text.trim()
    }

    /// The elements in it of that name.
    pub(crate) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Self> {
        self.children.iter().filter(move |it| it.name == name)
    }

    /// The first element in it of that name.
    pub(crate) fn child(&self, name: &str) -> Option<&Self> {
        self.children.iter().find(|it| it.name == name)
    }

    /// The text of the first element in it of that name, at most `bytes_max` bytes; empty if there is none.
    pub(crate) fn short(&self, name: &str, bytes_max: usize) -> String {
        let text = self.child(name).map(Self::text).unwrap_or_default();
        cut(text, bytes_max).to_owned()
    }

    /// A number of the first element in it of that name; 0 if there is none, or no finite one.
    pub(crate) fn number(&self, name: &str) -> f64 {
        let text = self.child(name).map(Self::text).unwrap_or_default();
        let number: f64 = text.parse().unwrap_or(0.0);
        if number.is_finite() { number } else { 0.0 }
    }

    /// The same as a count: no less than 0, no more than a database holds.
    pub(crate) fn count(&self, name: &str) -> u64 {
        let text = self.child(name).map(Self::text).unwrap_or_default();
        let whole = text
            .parse()
            .unwrap_or_else(|_| self.number(name).max(0.0) as u64);
        whole.min(i64::MAX as u64)
    }

    /// Whether there is an element of that name that does not say 0: `<x/>` and `<x>1</x>` are the same.
    pub(crate) fn flag(&self, name: &str) -> bool {
        self.child(name).is_some_and(|it| it.text() != "0")
    }
}

fn count_one(count: &mut usize) -> Result<(), XmlError> {
    *count += 1;
    match *count > ELEMENTS_MAX {
        true => Err(XmlError::Many),
        false => Ok(()),
    }
}

fn add(open: &mut [Element], text: &str) {
    if let Some(element) = open.last_mut() {
        // Space at the beginning, as between any two elements, is no text.
        let text = match element.text.is_empty() {
            true => text.trim_start(),
            false => text,
        };
        let room = TEXT_BYTES_MAX.saturating_sub(element.text.len());
        element.text.push_str(cut(text, room));
    }
}

fn meant_by(name: &str) -> String {
    match name {
        "amp" => "&".to_owned(),
        "lt" => "<".to_owned(),
        "gt" => ">".to_owned(),
        "quot" => "\"".to_owned(),
        "apos" => "'".to_owned(),
        text => {
            let number = text
                .strip_prefix('#')
                .and_then(|it| match it.strip_prefix('x') {
                    Some(digits) => u32::from_str_radix(digits, 16).ok(),
                    None => it.parse().ok(),
                });
            match number.and_then(char::from_u32) {
                Some(character) => character.to_string(),
                None => format!("&{text};"),
            }
        }
    }
}

/// The beginning of a text, at most so many bytes.
pub(crate) fn cut(text: &str, bytes_max: usize) -> &str {
    let mut end = text.len().min(bytes_max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// The end of a text, at most so many bytes.
pub(crate) fn cut_front(text: &str, bytes_max: usize) -> &str {
    let mut start = text.len() - text.len().min(bytes_max);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    &text[start..]
}

/// The message with a number in the place of each raw area, and the areas.
fn cut_raw(text: &str) -> (Cow<'_, str>, Vec<String>) {
    let (mut kept, mut raw, mut rest) = (String::new(), Vec::new(), text);
    while let Some((start, name)) = next_raw(rest) {
        let body = start + name.len() + 2;
        let Some(length) = rest[body..].find(&format!("</{name}>")) else {
            break;
        };
        kept.push_str(&rest[..body]);
        if raw.len() < RAW_MAX {
            kept.push_str(&raw.len().to_string());
            raw.push(cut_front(&rest[body..body + length], TEXT_BYTES_MAX).to_owned());
        }
        rest = &rest[body + length..];
    }
    if raw.is_empty() && kept.is_empty() {
        return (Cow::Borrowed(text), raw);
    }
    kept.push_str(rest);
    (Cow::Owned(kept), raw)
}

/// Where the next raw area's opening tag stands. Each byte is looked at once, however many tags there are.
fn next_raw(text: &str) -> Option<(usize, &'static str)> {
    text.match_indices('<').find_map(|(at, _)| {
        let inside = &text[at + 1..];
        let name = RAW_NAMES.into_iter().find(|name| {
            inside
                .strip_prefix(name)
                .is_some_and(|it| it.starts_with('>'))
        })?;
        Some((at, name))
    })
}

/// Whether XML 1.0 has a character (its production 2; Rust's have no surrogates): one that it lacks makes all of a file
/// unreadable.
pub(crate) fn is_in_xml(character: char) -> bool {
    match character {
        '\t' | '\n' | '\r' => true,
        '\u{fffe}' | '\u{ffff}' => false,
        it => ' ' <= it,
    }
}

/// A text as it stands in a reply's element.
pub(crate) fn escaped(text: &str) -> Cow<'_, str> {
    let is_told = |it: char| is_in_xml(it) && !it.is_control();
    let is_plain = |it: char| !matches!(it, '&' | '<' | '>' | '"' | '\'') && is_told(it);
    if text.chars().all(is_plain) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            it if !is_told(it) => escaped.push(' '),
            it => escaped.push(it),
        }
    }
    Cow::Owned(escaped)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Element, XmlError> {
        Element::read(text.as_bytes())
    }

    #[test]
    fn what_clients_write_is_read() {
        let found = read(
            "<a>\n  <n>12</n><b/><c>1</c><d>0</d>\n<t> x &amp; y &#65;&lt;z & w </t><n>13</n></a>junk",
        )
        .unwrap();
        assert_eq!(found.name(), "a");
        assert_eq!(found.count("n"), 12);
        assert_eq!(found.all("n").count(), 2);
        assert!(found.flag("b") && found.flag("c") && !found.flag("d") && !found.flag("e"));
        assert_eq!(found.short("t", 100), "x & y A<z & w");
        assert_eq!(found.short("t", 3), "x &");
    }

    #[test]
    fn what_applications_write_disturbs_nothing() {
        let found = read(
            "<a><r><name>one</name><stderr_out>\n<![CDATA[\n<oops & ]]> </r>\n]]>\n</stderr_out></r>\
             <msg_from_host><x><y & </msg_from_host><r><name>two</name></r></a>",
        )
        .unwrap();
        let names: Vec<String> = found.all("r").map(|it| it.short("name", 9)).collect();
        assert_eq!(names, ["one", "two"]);
        let first = found.child("r").unwrap();
        assert!(
            first
                .child("stderr_out")
                .unwrap()
                .text()
                .contains("<oops &")
        );
        assert_eq!(found.child("msg_from_host").unwrap().text(), "<x><y &");
    }

    #[test]
    fn numbers_are_kept_in_bounds() {
        let of = |text: &str| read(&format!("<a><n>{text}</n></a>")).unwrap();
        for (text, expected) in [
            ("1.5", 1),
            ("-7", 0),
            ("1e300", i64::MAX as u64),
            ("18446744073709551615", i64::MAX as u64),
            ("NaN", 0),
            ("inf", 0),
            ("", 0),
            ("0x10", 0),
        ] {
            assert_eq!(of(text).count("n"), expected, "{text}");
        }
        assert_eq!(of("1e999").number("n"), 0.0);
    }

    #[test]
    fn hostile_messages_are_refused() {
        assert_eq!(read(&"<a>".repeat(100_000)), Err(XmlError::Deep));
        let many = format!("<a>{}</a>", "<b/>".repeat(ELEMENTS_MAX + 1));
        assert_eq!(read(&many), Err(XmlError::Many));
        assert_eq!(read(""), Err(XmlError::Cut));
        assert_eq!(read("<a><b>"), Err(XmlError::Cut));
        assert!(read("<a><<<").is_err());
        let long = format!("<a><t>{}</t></a>", "x".repeat(1 << 20));
        assert_eq!(
            read(&long).unwrap().short("t", usize::MAX).len(),
            TEXT_BYTES_MAX
        );
        // Raw areas without end, many of them: one pass.
        let _ = read(&"<stderr_out>".repeat(200_000));
        let _ = read(&"<stderr_out></stderr_out>".repeat(100_000));
    }

    #[test]
    fn texts_are_escaped() {
        assert_eq!(escaped("plain"), "plain");
        assert_eq!(
            escaped("<a b='c'>&\"\n"),
            "&lt;a b=&#39;c&#39;&gt;&amp;&quot; "
        );
        // XML has no such characters, even escaped.
        assert_eq!(escaped("a\u{ffff}b\u{fffe}\u{1}c\u{85}"), "a b  c ");
        assert_eq!(escaped("\u{fffd}\u{10ffff}é"), "\u{fffd}\u{10ffff}é");
    }
}
