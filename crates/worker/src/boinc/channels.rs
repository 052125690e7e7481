//! Messages between a BOINC client and a task's program, in a file that both have in memory.
//!
//! Eight channels of 1024 bytes; the first byte says whether a message is there, the rest is its text, ended by a zero.
//! Whoever reads a message clears the byte; whoever writes one leaves an unread one alone. The client maps the file into
//! its memory; here it is read and written, which on Linux are the same pages.

use std::{fs::File, io, os::unix::fs::FileExt, path::Path};

/// The file's name in the slot.
const FILE: &str = "boinc_mmap_file";
const CHANNEL_BYTES: usize = 1024;
const CHANNELS: usize = 8;

/// A direction and purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Channel {
    /// From the client: suspend, resume, quit, abort.
    Control = 0,
    /// From the client: it is alive, and what memory the task may use.
    Heartbeat = 4,
    /// To the client: how far the task is.
    Status = 5,
    /// To the client: a message for the project lies in the slot.
    TrickleUp = 6,
    /// From the client: a message of the project lies in the slot.
    TrickleDown = 7,
}

/// The file with the messages.
#[derive(Debug)]
pub(crate) struct Channels {
    file: File,
}

impl Channels {
    /// Opens the client's file; `None` if there is none.
    ///
    /// # Errors
    /// The disk's.
    pub(crate) fn open(slot: &Path) -> io::Result<Option<Self>> {
        let mut options = File::options();
        let file = match options.read(true).write(true).open(slot.join(FILE)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let is_whole = file.metadata()?.len() >= (CHANNELS * CHANNEL_BYTES) as u64;
        Ok(is_whole.then_some(Self { file }))
    }

    /// Takes the message of a channel, if there is one.
    ///
    /// # Errors
    /// The disk's.
    pub(crate) fn take(&self, channel: Channel) -> io::Result<Option<String>> {
        let mut bytes = [0; CHANNEL_BYTES];
        let place = place(channel);
        self.file.read_exact_at(&mut bytes[..1], place)?;
        if bytes[0] == 0 {
            return Ok(None);
        }
        // Read after the byte that says that it is whole.
        self.file.read_exact_at(&mut bytes, place)?;
        self.file.write_all_at(&[0], place)?;
        let text = &bytes[1..];
        let end = text.iter().position(|it| *it == 0).unwrap_or(text.len());
        Ok(Some(String::from_utf8_lossy(&text[..end]).into_owned()))
    }

    /// Leaves a message in a channel; false if the one before was not taken yet. What does not fit is cut off.
    ///
    /// # Errors
    /// The disk's.
    pub(crate) fn put(&self, channel: Channel, text: &str) -> io::Result<bool> {
        let place = place(channel);
        let mut flag = [0];
        self.file.read_exact_at(&mut flag, place)?;
        if flag[0] != 0 {
            return Ok(false);
        }
        let length = text.len().min(CHANNEL_BYTES - 2);
        let mut bytes = text.as_bytes()[..length].to_vec();
        bytes.push(0);
        self.file.write_all_at(&bytes, place + 1)?;
        self.file.write_all_at(&[1], place)?;
        Ok(true)
    }
}

fn place(channel: Channel) -> u64 {
    (channel as usize * CHANNEL_BYTES) as u64
}

/// A client's side of the file, for tests: what a stock client does with it.
#[cfg(test)]
pub(crate) mod tests {
    use std::fs;

    use super::*;

    /// Makes the file as a client does, and gives the client's view of it.
    pub(crate) fn client_file(slot: &Path) -> Channels {
        fs::write(slot.join(FILE), vec![0; CHANNELS * CHANNEL_BYTES]).unwrap();
        Channels::open(slot).unwrap().unwrap()
    }

    #[test]
    fn a_message_is_read_once_and_never_overwritten() {
        let place = tempfile::tempdir().unwrap();
        assert!(Channels::open(place.path()).unwrap().is_none());
        fs::write(place.path().join(FILE), "short").unwrap();
        assert!(Channels::open(place.path()).unwrap().is_none());
        let client = client_file(place.path());
        let app = Channels::open(place.path()).unwrap().unwrap();
        assert_eq!(app.take(Channel::Control).unwrap(), None);
        assert!(client.put(Channel::Control, "<suspend/>\n").unwrap());
        assert!(!client.put(Channel::Control, "<resume/>\n").unwrap());
        let message = app.take(Channel::Control).unwrap();
        assert_eq!(message.as_deref(), Some("<suspend/>\n"));
        assert_eq!(app.take(Channel::Control).unwrap(), None);
        assert!(client.put(Channel::Control, "<resume/>").unwrap());

        assert!(app.put(Channel::Status, &"x".repeat(5000)).unwrap());
        let cut = client.take(Channel::Status).unwrap().unwrap();
        assert_eq!(cut.len(), CHANNEL_BYTES - 2);
        let bytes = fs::read(place.path().join(FILE)).unwrap();
        assert_eq!(bytes.len(), CHANNELS * CHANNEL_BYTES);
        assert_eq!(bytes[..10], *b"\x01<resume/>");
    }

    #[test]
    fn what_is_no_text_is_read_all_the_same() {
        let place = tempfile::tempdir().unwrap();
        let app = client_file(place.path());
        fs::write(
            place.path().join(FILE),
            vec![0xff; CHANNELS * CHANNEL_BYTES],
        )
        .unwrap();
        assert!(app.take(Channel::Heartbeat).unwrap().is_some());
        assert_eq!(app.take(Channel::Heartbeat).unwrap(), None);
    }
}
