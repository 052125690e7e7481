//! What the door reads of strangers' bytes, as plain functions: for whoever looks for bytes that break them.

use super::{
    request::SchedulerRequest,
    upload::UploadHead,
    xml::{Element, escaped},
};

/// A request to the scheduler: read or refused, and nothing of it becomes a tag of a reply.
///
/// # Panics
/// Where that does not hold.
pub fn scheduler(bytes: &[u8]) {
    if let Ok(request) = SchedulerRequest::read(bytes) {
        for report in &request.reports {
            let name = escaped(&report.name);
            let back = format!("<a><name>{name}</name></a>");
            let back = Element::read(&back).expect("what is escaped reads again");
            assert_eq!(back.all("name").count(), 1);
        }
        assert!(i64::try_from(request.host).is_ok() && i64::try_from(request.sequence).is_ok());
    }
}

/// The beginning of an upload.
pub fn upload(bytes: &[u8]) {
    let end = UploadHead::end(bytes).unwrap_or(bytes.len());
    let _ = UploadHead::read(&bytes[..end]);
}

#[cfg(test)]
mod tests {
    use super::*;

    const REQUEST: &[u8] = include_bytes!("request/sample.xml");
    const UPLOAD: &[u8] = b"<data_server_request>\n<file_upload>\n<file_info>\n<name>t_0_r0</name>\n<xml_signature>\nv1.5.ab\
        </xml_signature>\n<max_nbytes>500</max_nbytes>\n</file_info>\n<nbytes>68</nbytes>\n<md5_cksum>ab</md5_cksum>\n\
        <offset>0</offset>\n<data>\nxyz";

    /// Some bytes of a message changed, doubled, left out or replaced by what breaks parsers.
    fn mutated(bytes: &[u8], seed: u64) -> Vec<u8> {
        const PIECES: [&[u8]; 8] = [
            b"<",
            b"</result>",
            b"]]>",
            b"&",
            b"<stderr_out>",
            b"1e999",
            b"\xff\x00",
            b"<!DOCTYPE a [<!ENTITY b \"c\">]>",
        ];
        let mut hash = blake3::Hasher::new();
        hash.update(&seed.to_le_bytes());
        let mut chance = hash.finalize_xof();
        let mut next = move |below: usize| {
            let mut number = [0; 8];
            chance.fill(&mut number);
            (u64::from_le_bytes(number) % below.max(1) as u64) as usize
        };
        let mut bytes = bytes.to_vec();
        for _ in 0..=next(6) {
            let at = next(bytes.len());
            let end = (at + next(200)).min(bytes.len());
            match next(4) {
                0 => bytes[at] = next(256) as u8,
                1 => drop(bytes.drain(at..end)),
                2 => {
                    let piece = bytes[at..end].to_vec();
                    bytes.splice(at..at, piece);
                }
                _ => {
                    let piece = PIECES[next(PIECES.len())];
                    bytes.splice(at..at, piece.iter().copied());
                }
            }
            if bytes.is_empty() {
                break;
            }
        }
        bytes
    }

    #[test]
    fn no_bytes_make_a_decoder_panic() {
        for seed in 0..20_000 {
            scheduler(&mutated(REQUEST, seed));
            upload(&mutated(UPLOAD, seed));
        }
    }
}
