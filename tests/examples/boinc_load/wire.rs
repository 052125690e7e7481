//! What a stock client sends and what comes back, as text. The request is one that Debian's client 7.20.5 sent, with what
//! differs from host to host left open.

use std::fmt::Write as _;

use anyhow::{Context, Result, bail, ensure};
use protocol::boinc::{OUTPUT_NAME, UNIT_NAME};

const REQUEST: &str = include_str!("request.xml");
/// What a real one of a finished task says; a line of its own has the time.
const STDERR: &str = "\
2026-11-28T12:47:05.186875Z  INFO unit opened unit=@name@
2026-11-28T12:47:06.177357Z  INFO training begins round=1 slot=0
2026-11-28T12:47:06.188898Z  INFO first step done round=1 slot=0
2026-11-28T12:47:14.759852Z  INFO training ends round=1 slot=0 steps=1 stepping_ms=8339
";

/// What a host says of itself in one request.
pub(super) struct Says<'a> {
    pub(super) authenticator: &'a str,
    pub(super) host: u64,
    pub(super) sequence: u64,
    pub(super) cpid: &'a str,
    /// As the project told them; empty at the first contact.
    pub(super) code_sign_key: &'a str,
    pub(super) cross_id: &'a str,
    pub(super) now_s: f64,
    pub(super) wants_work: bool,
    pub(super) report: Option<&'a Done>,
    /// The task that it computes.
    pub(super) held: Option<&'a str>,
    /// Steps that its application told since.
    pub(super) trickle: Option<u32>,
    /// Sticky files: name and length.
    pub(super) files: &'a [(String, u64)],
}

/// A task whose result is at the hub.
pub(super) struct Done {
    pub(super) name: String,
    pub(super) bytes: usize,
    pub(super) bytes_max: u64,
    pub(super) md5: String,
}

/// A task that a reply gives.
pub(super) struct Given {
    /// Name of the unit.
    pub(super) name: String,
    /// Name of the signed file.
    pub(super) file: String,
    pub(super) bytes_max: u64,
    pub(super) token: String,
}

impl Says<'_> {
    pub(super) fn text(&self) -> String {
        let mut out = String::with_capacity(REQUEST.len() + 4_096);
        let mut parts = REQUEST.split('@');
        out.push_str(parts.next().unwrap_or_default());
        while let (Some(name), Some(text)) = (parts.next(), parts.next()) {
            self.fill(&mut out, name);
            out.push_str(text);
        }
        out
    }

    fn fill(&self, out: &mut String, name: &str) {
        let written = match name {
            "authenticator" => write!(out, "{}", self.authenticator),
            "host" => write!(out, "{}", self.host),
            "sequence" => write!(out, "{}", self.sequence),
            "seconds" => write!(out, "{}.000000", u32::from(self.wants_work) * 51_840),
            "instances" => write!(out, "{}.000000", u32::from(self.wants_work)),
            "cross" => write!(out, "{}", self.cross_id),
            "now" => write!(out, "{:.6}", self.now_s),
            "cpid" => write!(out, "{}", self.cpid),
            "key" if !self.code_sign_key.is_empty() => writeln!(
                out,
                "    <code_sign_key>\n{}\n</code_sign_key>",
                self.code_sign_key
            ),
            "reports" => self.report.map_or(Ok(()), |it| report(out, it)),
            "trickles" => match (self.trickle, self.held) {
                (Some(steps), Some(held)) => write!(
                    out,
                    "  <msg_from_host>\n      <result_name>{held}_0</result_name>\n      <time>{:.0}</time>\n\
                     <variety>progress</variety>\n<unit>{held}</unit><steps>{steps}</steps><loss>3.1234</loss>\n\n  \
                     </msg_from_host>\n",
                    self.now_s
                ),
                _ => Ok(()),
            },
            "files" => self.files.iter().try_for_each(|(name, bytes)| {
                write!(
                    out,
                    "    <file_info>\n        <name>{name}</name>\n        <nbytes>{bytes}.000000</nbytes>\n        \
                     <status>1</status>\n    </file_info>\n"
                )
            }),
            "versions" => write!(out, "{}", self.versions()),
            "held" => self.held.map_or(Ok(()), |it| {
                write!(
                    out,
                    "    <other_result>\n        <name>{it}_0</name>\n        <app_version>0</app_version>\n    \
                     </other_result>\n"
                )
            }),
            _ => Ok(()),
        };
        written.expect("writing to a string");
    }

    fn versions(&self) -> &'static str {
        if self.files.is_empty() {
            return "<app_versions>\n</app_versions>\n";
        }
        "<app_versions>\n<app_version>\n    <app_name>athome</app_name>\n    <version_num>101</version_num>\n    \
         <platform>x86_64-pc-linux-gnu</platform>\n    <avg_ncpus>1.000000</avg_ncpus>\n    \
         <flops>1000000000.000000</flops>\n    <api_version>7.20.5</api_version>\n</app_version>\n</app_versions>\n"
    }
}

fn report(out: &mut String, done: &Done) -> std::fmt::Result {
    let (name, stderr) = (&done.name, STDERR.replace("@name@", &done.name));
    write!(
        out,
        "<result>\n    <name>{name}_0</name>\n    <final_cpu_time>893.070000</final_cpu_time>\n    \
         <final_elapsed_time>911.109970</final_elapsed_time>\n    <exit_status>0</exit_status>\n    \
         <state>5</state>\n    <platform>x86_64-pc-linux-gnu</platform>\n    <version_num>101</version_num>\n    \
         <final_peak_working_set_size>10915840</final_peak_working_set_size>\n    \
         <final_peak_swap_size>83898368</final_peak_swap_size>\n    \
         <final_peak_disk_usage>15134</final_peak_disk_usage>\n    <app_version_num>101</app_version_num>\n\
         <stderr_out>\n<core_client_version>7.20.5</core_client_version>\n<![CDATA[\n<stderr_txt>\n{stderr}\n\
         </stderr_txt>\n]]>\n</stderr_out>\n<file_info>\n    <name>{name}_0_r0</name>\n    \
         <nbytes>{}.000000</nbytes>\n    <max_nbytes>{}.000000</max_nbytes>\n    \
         <md5_cksum>{}</md5_cksum>\n    <upload_url>http://hub/boinc/file_upload_handler</upload_url>\n\
         </file_info>\n</result>\n",
        done.bytes, done.bytes_max, done.md5
    )
}

/// A request as a client makes it; `client` is whom the proxy says it is of.
pub(super) fn post(path: &str, client: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "POST {path} HTTP/1.1\r\n{}Content-Length: {}\r\nContent-Type: application/x-www-form-urlencoded\r\n\r\n",
        headers(client),
        body.len()
    );
    [head.as_bytes(), body].concat()
}

/// The same without a body.
pub(super) fn get(path: &str, client: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\n{}\r\n", headers(client)).into_bytes()
}

fn headers(client: &str) -> String {
    format!(
        "Host: hub.example.org\r\nUser-Agent: BOINC client (x86_64-pc-linux-gnu 7.20.5)\r\nAccept: */*\r\n\
         Accept-Encoding: deflate, gzip, br, zstd\r\nX-Forwarded-For: {client}\r\n"
    )
}

/// An upload's body.
pub(super) fn upload(given: &Given, md5: &str, bytes: &[u8]) -> Vec<u8> {
    let head = format!(
        "<data_server_request>\n    <core_client_major_version>7</core_client_major_version>\n    \
         <core_client_minor_version>20</core_client_minor_version>\n    \
         <core_client_release>5</core_client_release>\n<file_upload>\n<file_info>\n<name>{}_0_r0</name>\n\
         <xml_signature>\n{}</xml_signature>\n<max_nbytes>{}</max_nbytes>\n</file_info>\n<nbytes>{}</nbytes>\n\
         <md5_cksum>{md5}</md5_cksum>\n<offset>0</offset>\n<data>\n",
        given.name,
        given.token,
        given.bytes_max,
        bytes.len()
    );
    [head.as_bytes(), bytes].concat()
}

/// Whether an upload was taken.
pub(super) fn must_be_taken(reply: &[u8]) -> Result<()> {
    let text = String::from_utf8_lossy(reply);
    ensure!(
        between(&text, "status") == Some("0"),
        "an upload was not taken: {text}"
    );
    Ok(())
}

/// A reply of the scheduler, whole.
pub(super) struct Reply(String);

impl Reply {
    pub(super) fn read(body: Vec<u8>) -> Result<Self> {
        let text = String::from_utf8(body)?;
        let is_whole =
            text.starts_with("<scheduler_reply>\n") && text.ends_with("</scheduler_reply>\n");
        ensure!(is_whole, "that is no scheduler's reply: {text}");
        // What no request of this load should have.
        for tag in ["<result_abort>", "<userid>0<"] {
            ensure!(!text.contains(tag), "the reply has {tag}: {text}");
        }
        ensure!(text.contains("<userid>"), "the host is not known: {text}");
        Ok(Self(text))
    }

    pub(super) fn field(&self, name: &str) -> Option<&str> {
        between(&self.0, name)
    }

    pub(super) fn has(&self, text: &str) -> bool {
        self.0.contains(text)
    }

    /// The task in it, which must be of this kind.
    pub(super) fn task(&self, kinds: &[&str]) -> Result<Given> {
        let given = self
            .given()
            .with_context(|| format!("a reply without a task: {}", self.0))?;
        if !kinds.iter().any(|it| given.name.starts_with(it)) {
            bail!("a task {} where one of {kinds:?} was due", given.name);
        }
        Ok(given)
    }

    fn given(&self) -> Option<Given> {
        let unit = self.field("workunit")?;
        // The signed file is the one that the application opens by this name.
        let opened = format!("<open_name>{UNIT_NAME}</open_name>");
        let mut references = unit.split("<file_ref>").filter(|it| it.contains(&opened));
        let result = self.field("result")?;
        result
            .contains(&format!("<open_name>{OUTPUT_NAME}</open_name>"))
            .then_some(())?;
        Some(Given {
            name: between(unit, "name")?.to_owned(),
            file: between(references.next()?, "file_name")?.to_owned(),
            bytes_max: self.field("max_nbytes")?.parse().ok()?,
            token: self.field("xml_signature")?.trim().to_owned(),
        })
    }
}

fn between<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(&format!("<{name}>"))?;
    Some(rest.split_once(&format!("</{name}>"))?.0)
}

/// What a client is given when it makes an account.
pub(super) fn authenticator(reply: &[u8]) -> Result<String> {
    let text = String::from_utf8_lossy(reply);
    let key = between(&text, "authenticator");
    Ok(key
        .with_context(|| format!("no account: {text}"))?
        .to_owned())
}
