//! The XML that BOINC clients send: small, old, and not always XML. Read into a bounded tree.
//!
//! What an application or a user wrote stands in it unescaped: those areas are taken as plain text up to their end. The
//! rest is read by a parser that forgives what old clients do. Anything worse is refused, and the client is told. The tree
//! borrows from the message, of which most is looked at by nobody.

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
/// What applications and users write as they like.
const RAW_NAMES: [&str; 3] = ["stderr_out", "msg_from_host", "client_opaque"];

/// An element with what is in it; attributes are not looked at.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Element<'a> {
    name: Cow<'a, str>,
    text: Cow<'a, str>,
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

/// A message as text: what is not UTF-8 in it becomes a mark.
pub(crate) fn as_text(bytes: &[u8]) -> Cow<'_, str> {
    // Most are what they should be, and that is seen faster than it is mended.
    match std::str::from_utf8(bytes) {
        Ok(text) => Cow::Borrowed(text),
        Err(_) => String::from_utf8_lossy(bytes),
    }
}

impl<'a> Element<'a> {
    /// Reads a message: its first element, which must be closed.
    pub(crate) fn read(text: &'a str) -> Result<Self, XmlError> {
        let mut rest = Rest::of(text);
        let mut open: Vec<Self> = Vec::new();
        let mut count = 0;
        loop {
            let (event, at) = rest.next()?;
            match event {
                Event::Start(start) => {
                    count_one(&mut count)?;
                    if open.len() >= DEPTH_MAX {
                        return Err(XmlError::Deep);
                    }
                    let mut element = Self::named(start.local_name().as_ref(), at);
                    if let Some(raw) = rest.raw(&element.name) {
                        element.text = cut_front(raw, TEXT_BYTES_MAX).into();
                    }
                    open.push(element);
                }
                Event::Empty(start) => {
                    count_one(&mut count)?;
                    if let Some(parent) = open.last_mut() {
                        let element = Self::named(start.local_name().as_ref(), at);
                        parent.children.push(element);
                    }
                }
                Event::End(_) => match (open.pop(), open.last_mut()) {
                    (Some(ended), Some(parent)) => parent.children.push(ended),
                    (Some(ended), None) => return Ok(ended),
                    (None, _) => {}
                },
                Event::Text(text) => add(&mut open, text.into_inner()),
                Event::CData(text) => add(&mut open, text.into_inner()),
                Event::GeneralRef(name) => add(&mut open, meant_by(&name).into()),
                Event::Eof => return Err(XmlError::Cut),
                Event::Decl(_) | Event::PI(_) | Event::DocType(_) | Event::Comment(_) => {}
            }
        }
    }

    /// An element whose tag begins there.
    fn named(name: &str, tag: &'a str) -> Self {
        let name = cut(name, NAME_BYTES_MAX);
        let there = tag.get(1..=name.len()).filter(|it| *it == name);
        Self {
            name: there.map_or_else(|| name.to_owned().into(), Cow::Borrowed),
            ..Self::default()
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
    pub(crate) fn all<'b>(&'b self, name: &'b str) -> impl Iterator<Item = &'b Self> {
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

/// What of a message was not read yet.
struct Rest<'a> {
    text: &'a str,
    reader: Reader<&'a [u8]>,
    /// Where `text` begins in the message.
    begins: usize,
    /// Of which raw areas there is no end any more.
    without_end: [bool; RAW_NAMES.len()],
}

impl<'a> Rest<'a> {
    fn of(text: &'a str) -> Self {
        // The parser leaves the mark out and does not count it.
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        Self {
            text,
            reader: reader_of(text),
            begins: 0,
            without_end: Default::default(),
        }
    }

    /// What comes next, and the text from there on.
    fn next(&mut self) -> Result<(Event<'a>, &'a str), XmlError> {
        let at = self.reader.buffer_position() as usize;
        let event = self
            .reader
            .read_event()
            .map_err(|_| XmlError::Syntax(self.begins as u64 + self.reader.error_position()))?;
        Ok((event, self.text.get(at..).unwrap_or_default()))
    }

    /// The text up to the end of a raw area that was just begun; `None` if it is none. Its end is looked for once where
    /// there is none, however many begin.
    fn raw(&mut self, name: &str) -> Option<&'a str> {
        let kind = RAW_NAMES.into_iter().position(|it| it == name)?;
        let inside = self.text.get(self.reader.buffer_position() as usize..)?;
        if self.without_end[kind] {
            return None;
        }
        let Some(length) = inside.find(&format!("</{name}>")) else {
            self.without_end[kind] = true;
            return None;
        };
        let (raw, rest) = inside.split_at(length);
        self.begins += self.text.len() - rest.len();
        self.text = rest;
        self.reader = reader_of(rest);
        Some(raw)
    }
}

fn reader_of(text: &str) -> Reader<&[u8]> {
    let mut reader = Reader::from_str(text);
    let config = reader.config_mut();
    config.allow_dangling_amp = true;
    config.allow_unmatched_ends = true;
    config.check_end_names = false;
    reader
}

fn count_one(count: &mut usize) -> Result<(), XmlError> {
    *count += 1;
    match *count > ELEMENTS_MAX {
        true => Err(XmlError::Many),
        false => Ok(()),
    }
}

fn add<'a>(open: &mut [Element<'a>], text: Cow<'a, str>) {
    let Some(element) = open.last_mut() else {
        return;
    };
    if element.text.is_empty() {
        // Space at the beginning, as between any two elements, is no text.
        element.text = match text {
            Cow::Borrowed(text) => cut(text.trim_start(), TEXT_BYTES_MAX).into(),
            Cow::Owned(text) => cut(text.trim_start(), TEXT_BYTES_MAX).to_owned().into(),
        };
        return;
    }
    let room = TEXT_BYTES_MAX.saturating_sub(element.text.len());
    element.text.to_mut().push_str(cut(&text, room));
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

    fn read(text: &str) -> Result<Element<'_>, XmlError> {
        Element::read(text)
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
        // Where nothing ends it, it is an element as others are; where something broken comes after, that is told.
        let found = read("<a><stderr_out>x<b>1</b></stderr></a>").unwrap();
        assert_eq!(found.child("stderr_out").unwrap().count("b"), 1);
        let marked = read("\u{feff}<a><stderr_out>x</stderr_out></a>").unwrap();
        assert_eq!(marked.child("stderr_out").unwrap().text(), "x");
        let text = "<a><stderr_out><!</stderr_out><b><!</b></a>";
        let at = text.rfind("<!").unwrap() as u64;
        assert_eq!(read(text), Err(XmlError::Syntax(at)));
    }

    #[test]
    fn numbers_are_kept_in_bounds() {
        let of = |text: &str| format!("<a><n>{text}</n></a>");
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
            let message = of(text);
            assert_eq!(read(&message).unwrap().count("n"), expected, "{text}");
        }
        assert_eq!(read(&of("1e999")).unwrap().number("n"), 0.0);
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
        let begun = format!("<a>{}", "<stderr_out></b>".repeat(15_000));
        let long = format!("{begun}{}</a>", " ".repeat(4 << 20));
        assert_eq!(read(&long).unwrap().children.len(), 15_000);
        let empty = format!("<a>{}</a>", "<stderr_out></stderr_out>".repeat(15_000));
        assert_eq!(read(&empty).unwrap().children.len(), 15_000);
        assert_eq!(read(&"<stderr_out>".repeat(200_000)), Err(XmlError::Deep));
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
