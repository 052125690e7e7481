//! The head of an upload, and the answer to it.

use crate::boinc::xml::{cut, escaped};

/// Longest head before the bytes.
pub(super) const HEAD_BYTES_MAX: usize = 8 * 1024;

/// What an upload request says before its bytes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum UploadHead {
    /// How much of a file is here?
    Size { file: String },
    /// Bytes of a file.
    Data {
        file: String,
        token: String,
        bytes_max: u64,
        bytes: u64,
        md5: String,
        offset: u64,
    },
}

/// The answer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct UploadReply {
    /// 0: done; 1: again later; -1: never.
    pub(crate) status: i32,
    pub(crate) file_size: Option<u64>,
    pub(crate) message: Option<&'static str>,
}

pub(super) const DONE: UploadReply = UploadReply {
    status: 0,
    file_size: None,
    message: None,
};

pub(super) const fn later(message: &'static str) -> UploadReply {
    UploadReply {
        status: 1,
        file_size: None,
        message: Some(message),
    }
}

pub(super) const fn never(message: &'static str) -> UploadReply {
    UploadReply {
        status: -1,
        file_size: None,
        message: Some(message),
    }
}

impl UploadReply {
    /// The text that travels.
    pub(crate) fn render(&self) -> String {
        let size = self.file_size;
        let size = size.map(|it| format!("    <file_size>{it}</file_size>\n"));
        let message = self.message.map(escaped);
        let message = message.map(|it| format!("    <message>{it}</message>\n"));
        format!(
            "<data_server_reply>\n    <status>{}</status>\n{}{}</data_server_reply>\n",
            self.status,
            size.unwrap_or_default(),
            message.unwrap_or_default()
        )
    }
}

impl UploadHead {
    /// Reads a head; `None` for anything else.
    pub(crate) fn read(head: &[u8]) -> Option<Self> {
        let text = String::from_utf8_lossy(&head[..head.len().min(HEAD_BYTES_MAX)]);
        let between = |name: &str| {
            let (_, rest) = text.split_once(&format!("<{name}>"))?;
            let (found, _) = rest.split_once(&format!("</{name}>"))?;
            Some(cut(found.trim(), 512).to_owned())
        };
        if let Some(file) = between("get_file_size") {
            return Some(Self::Size { file });
        }
        // Numbers come with decimals too.
        let number = |name: &str| {
            let number = between(name)?;
            let whole = number.split_once('.').map_or(number.as_str(), |it| it.0);
            whole.parse().ok()
        };
        Some(Self::Data {
            file: between("name")?,
            token: between("xml_signature")?,
            bytes_max: number("max_nbytes")?,
            bytes: number("nbytes")?,
            md5: between("md5_cksum")?.to_ascii_lowercase(),
            offset: number("offset")?,
        })
    }

    /// Where the bytes begin, if the line is there that ends the head.
    pub(crate) fn end(bytes: &[u8]) -> Option<usize> {
        const END: &[u8] = b"\n<data>\n";
        let found = bytes.windows(END.len()).position(|it| it == END)?;
        Some(found + END.len())
    }
}

#[cfg(test)]
mod tests;
