//! The parser, whole, cut anywhere, and fed noise.

use super::*;

fn parse(text: &[u8]) -> Result<Vec<StreamEvent>, ParseError> {
    Parser::new(1_000).push(text)
}

fn event(event: &str, data: &str, id: Option<&str>) -> StreamEvent {
    StreamEvent {
        event: event.into(),
        data: data.into(),
        id: id.map(Into::into),
    }
}

const SAMPLE: &[u8] =
    b"\xef\xbb\xbf: keep-alive\n\nevent: entry\r\nid: 7\r\ndata: {\"a\":\r\ndata: 1}\r\n\r\ndata:x\r\rretry: 5\nevent: lost\n\nid: 8\ndata\n\n";

fn sample_events() -> Vec<StreamEvent> {
    vec![
        event("entry", "{\"a\":\n1}", Some("7")),
        event("message", "x", Some("7")),
        event("message", "", Some("8")),
    ]
}

#[test]
fn fields_comments_and_line_ends() {
    assert_eq!(parse(SAMPLE), Ok(sample_events()));
}

#[test]
fn an_event_without_its_empty_line_is_not_given() {
    assert_eq!(parse(b"data: half\n"), Ok(vec![]));
}

#[test]
fn cuts_anywhere_change_nothing() {
    for first in 0..SAMPLE.len() {
        for second in first..SAMPLE.len() {
            let mut parser = Parser::new(1_000);
            let mut events = parser.push(&SAMPLE[..first]).unwrap();
            events.extend(parser.push(&SAMPLE[first..second]).unwrap());
            events.extend(parser.push(&SAMPLE[second..]).unwrap());
            assert_eq!(events, sample_events(), "cut at {first} and {second}");
        }
    }
}

#[test]
fn lines_and_events_have_limits() {
    let too_long = Err(ParseError::TooLong { bytes_max: 16 });
    assert_eq!(Parser::new(16).push(&[b'x'; 17]), too_long);
    assert_eq!(
        Parser::new(16).push(b"data:12345678\ndata:12345678\n"),
        too_long
    );
    assert_eq!(
        Parser::new(16).push(b"data:1234567\n\n"),
        Ok(vec![event("message", "1234567", None)])
    );
}

#[test]
fn bytes_that_are_no_text_are_refused() {
    assert_eq!(parse(b"data: \xff\n"), Err(ParseError::NotText));
}

/// Random streams out of the pieces that matter: never a panic, and the same events however they are cut.
#[test]
fn noise_is_parsed_alike_in_any_cut() {
    const PIECES: [&[u8]; 12] = [
        b"data:x",
        b"data",
        b": ",
        b"\n",
        b"\n\n",
        b"\r",
        b"\r\n",
        b"id: 3\n",
        b"event:entry\n",
        b"\xc3",
        b"\xa9",
        b"\0",
    ];
    let mut state = 0x1234_5678_u64;
    let mut random = |below: usize| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        ((state >> 33) as usize) % below
    };
    let mut events_seen = 0;
    for _ in 0..3_000 {
        let mut stream = Vec::new();
        for _ in 0..random(40) {
            stream.extend_from_slice(PIECES[random(PIECES.len())]);
        }
        let whole = Parser::new(64).push(&stream);
        let mut parser = Parser::new(64);
        let mut bytewise = Ok(vec![]);
        for byte in &stream {
            match (parser.push(&[*byte]), &mut bytewise) {
                (Ok(events), Ok(all)) => all.extend(events),
                (Err(error), _) => {
                    bytewise = Err(error);
                    break;
                }
                (Ok(_), Err(_)) => unreachable!("left after the first error"),
            }
        }
        events_seen += whole.as_ref().map_or(0, Vec::len);
        assert_eq!(whole, bytewise, "{stream:?}");
    }
    assert!(
        events_seen > 100,
        "the noise has too few events: {events_seen}"
    );
}
