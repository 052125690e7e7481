//! What the scheduler answers, in the exact shape that clients read: some tags only at the beginning of a line, some only
//! after others (a file before whoever refers to it).

use std::fmt::Write;

use super::{
    release::{Platform, Release},
    xml::{cut, escaped},
};

/// Version of the scheduler that clients are told: features of later ones are not here.
const SCHEDULER_VERSION: u32 = 716;
/// The API that applications of this project use; from 6.0 on a client talks to them over shared memory.
const API_VERSION: &str = "7.20.5";
/// Longest message; a client's buffer has 1,023 bytes.
const MESSAGE_BYTES_MAX: usize = 900;
/// A task may take so many times its estimate before the client ends it: the application knows itself when to stop.
const BOUND_RATIO: f64 = 1_000.0;

/// A reply.
#[derive(Debug, Default)]
pub(crate) struct SchedulerReply {
    /// Least time to the next request.
    pub(crate) request_delay_s: f64,
    /// Longest time to it.
    pub(crate) next_request_s: Option<f64>,
    pub(crate) messages: Vec<Message>,
    /// Whom it is for; without it nothing but the messages is said.
    pub(crate) body: Option<Body>,
}

/// A sentence for the client's user.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Message {
    /// Whether it is shown where people look, not only in the client's log.
    pub(crate) is_notice: bool,
    pub(crate) text: String,
}

/// The part of a reply to a host that is known.
#[derive(Debug)]
pub(crate) struct Body {
    pub(crate) master_url: String,
    pub(crate) project: String,
    pub(crate) account: Account,
    /// The host's number, told only when it is another than the client believes.
    pub(crate) host: Option<u64>,
    pub(crate) host_created_s: u64,
    pub(crate) host_total: f64,
    pub(crate) host_recent: f64,
    pub(crate) acknowledged: Vec<String>,
    pub(crate) has_trickles: bool,
    pub(crate) aborted: Vec<String>,
    pub(crate) deleted: Vec<String>,
    pub(crate) task: Option<Task>,
    /// Told to a client that holds none or another.
    pub(crate) code_sign_key: Option<String>,
}

/// The account block.
#[derive(Debug, Default)]
pub(crate) struct Account {
    pub(crate) id: u64,
    pub(crate) name: String,
    pub(crate) total: f64,
    pub(crate) recent: f64,
    pub(crate) created_s: u64,
    pub(crate) email_hash: String,
    pub(crate) cross_project_id: String,
    pub(crate) external_id: String,
    pub(crate) team: Option<(u64, String)>,
}

/// A task with everything that it needs.
#[derive(Debug)]
pub(crate) struct Task {
    /// The unit's name.
    pub(crate) name: String,
    pub(crate) app: String,
    pub(crate) version: u32,
    pub(crate) platform: Platform,
    /// Processors that it keeps busy.
    pub(crate) processors: u32,
    /// Speed of the host as its client measured it.
    pub(crate) flops: f64,
    /// Expected time.
    pub(crate) seconds: f64,
    pub(crate) memory_bytes: u64,
    pub(crate) disk_bytes: u64,
    pub(crate) inputs: Vec<Input>,
    pub(crate) upload_bytes_max: u64,
    pub(crate) upload_token: String,
    pub(crate) deadline_s: u64,
}

/// A file that a task reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Input {
    /// Its name at the client: its hash.
    pub(crate) name: String,
    pub(crate) open_name: String,
    pub(crate) bytes: u64,
    pub(crate) md5: String,
    pub(crate) is_sticky: bool,
}

impl SchedulerReply {
    /// A reply that says one thing and nothing else.
    pub(crate) fn only(text: impl Into<String>, is_notice: bool, request_delay_s: f64) -> Self {
        let text = text.into();
        Self {
            request_delay_s,
            messages: vec![Message { is_notice, text }],
            ..Self::default()
        }
    }

    /// The text that travels.
    pub(crate) fn render(&self, release: &Release) -> String {
        let mut out = String::with_capacity(4_096);
        out.push_str("<scheduler_reply>\n");
        line(&mut out, "scheduler_version", SCHEDULER_VERSION);
        out.push_str("<dont_use_dcf/>\n");
        if let Some(body) = &self.body {
            line(&mut out, "master_url", escaped(&body.master_url));
        }
        line(&mut out, "request_delay", decimal(self.request_delay_s));
        if let Some(seconds) = self.next_request_s {
            line(&mut out, "next_rpc_delay", decimal(seconds));
        }
        for message in &self.messages {
            let priority = if message.is_notice { "notice" } else { "low" };
            let text = one_line(&message.text);
            let text = escaped(cut(&text, MESSAGE_BYTES_MAX));
            let _ = writeln!(out, "<message priority=\"{priority}\">{text}</message>");
        }
        if let Some(body) = &self.body {
            line(&mut out, "project_name", escaped(&body.project));
            body.render(&mut out, release);
        }
        out.push_str("</scheduler_reply>\n");
        out
    }
}

impl Body {
    fn render(&self, out: &mut String, release: &Release) {
        self.render_account(out);
        for name in &self.acknowledged {
            let _ = writeln!(
                out,
                "<result_ack>\n    <name>{}</name>\n</result_ack>",
                escaped(name)
            );
        }
        if self.has_trickles {
            out.push_str("<message_ack/>\n");
        }
        for name in &self.aborted {
            let name = escaped(name);
            let _ = writeln!(
                out,
                "<result_abort>\n    <name>{name}</name>\n</result_abort>"
            );
        }
        for name in &self.deleted {
            line(out, "delete_file_info", escaped(name));
        }
        if let Some(task) = &self.task {
            task.render(out, &self.master_url, release);
        }
        if let Some(key) = &self.code_sign_key {
            let _ = writeln!(out, "<code_sign_key>\n{}\n</code_sign_key>", key.trim());
            if let Some(signature) = &release.code_sign_key_signature {
                let signature = signature.trim();
                let _ = writeln!(
                    out,
                    "<code_sign_key_signature>\n{signature}\n</code_sign_key_signature>"
                );
            }
        }
        let home = escaped(&self.master_url);
        let _ = writeln!(
            out,
            "<gui_urls>\n    <gui_url>\n        <name>Your machines</name>\n        \
             <description>Tasks, credit and refusals with their reasons</description>\n        \
             <url>{home}#/machines</url>\n    </gui_url>\n</gui_urls>"
        );
    }

    fn render_account(&self, out: &mut String) {
        let account = &self.account;
        line(out, "userid", account.id);
        line(out, "user_name", escaped(&account.name));
        line(out, "user_total_credit", decimal(account.total));
        line(out, "user_expavg_credit", decimal(account.recent));
        line(out, "user_create_time", account.created_s);
        line(out, "email_hash", &account.email_hash);
        line(out, "cross_project_id", escaped(&account.cross_project_id));
        line(out, "external_cpid", &account.external_id);
        out.push_str(
            "<project_preferences>\n<resource_share>100</resource_share>\n</project_preferences>\n",
        );
        if let Some(host) = self.host {
            line(out, "hostid", host);
        }
        line(out, "host_total_credit", decimal(self.host_total));
        line(out, "host_expavg_credit", decimal(self.host_recent));
        line(out, "host_venue", "");
        line(out, "host_create_time", self.host_created_s);
        let (team, name) = match &account.team {
            Some((id, name)) => (*id, name.as_str()),
            None => (0, ""),
        };
        line(out, "teamid", team);
        line(out, "team_name", escaped(name));
    }
}

/// Name of the one result of a unit.
pub(crate) fn result_name(unit: &str) -> String {
    format!("{unit}_0")
}

/// Name of its output file.
pub(crate) fn output_name(unit: &str) -> String {
    format!("{unit}_0_r0")
}

/// The unit whose result this is.
pub(crate) fn unit_of_result(name: &str) -> Option<&str> {
    name.strip_suffix("_0")
}

/// The unit whose output file this is.
pub(crate) fn unit_of_output(name: &str) -> Option<&str> {
    name.strip_suffix("_0_r0")
}

impl Task {
    fn render(&self, out: &mut String, master_url: &str, release: &Release) {
        let master_url = escaped(master_url);
        let app = escaped(&self.app);
        let _ = writeln!(
            out,
            "<app>\n    <name>{app}</name>\n    <user_friendly_name>AI@home training</user_friendly_name>\n    \
             <non_cpu_intensive>0</non_cpu_intensive>\n    <fraction_done_exact>1</fraction_done_exact>\n</app>"
        );
        for file in &self.platform.files {
            let _ = writeln!(
                out,
                "<file_info>\n    <name>{}</name>\n    <url>{master_url}boinc/files/{}</url>\n    <executable/>\n    \
                 <file_signature>\n{}\n    </file_signature>\n    <nbytes>{}</nbytes>\n</file_info>",
                escaped(&file.name),
                file.blake3,
                file.file_signature.trim(),
                file.bytes,
            );
        }
        for input in &self.inputs {
            let sticky = if input.is_sticky {
                "    <sticky/>\n"
            } else {
                ""
            };
            let _ = writeln!(
                out,
                "<file_info>\n    <name>{name}</name>\n    <url>{master_url}boinc/files/{name}</url>\n    \
                 <md5_cksum>{}</md5_cksum>\n{sticky}    <nbytes>{}</nbytes>\n</file_info>",
                input.md5,
                input.bytes,
                name = input.name,
            );
        }
        let (output, result) = (output_name(&self.name), result_name(&self.name));
        let _ = writeln!(
            out,
            "<file_info>\n    <name>{output}</name>\n    <generated_locally/>\n    <upload_when_present/>\n    \
             <max_nbytes>{}</max_nbytes>\n    <url>{master_url}boinc/file_upload_handler</url>\n    \
             <xml_signature>\n{}\n    </xml_signature>\n</file_info>",
            self.upload_bytes_max, self.upload_token,
        );
        self.render_version(out, release);
        self.render_unit(out);
        let _ = writeln!(
            out,
            "<result>\n    <name>{result}</name>\n    <wu_name>{}</wu_name>\n    \
             <report_deadline>{}</report_deadline>\n    <report_immediately/>\n    <file_ref>\n        \
             <file_name>{output}</file_name>\n        <open_name>{}</open_name>\n    </file_ref>\n    \
             <platform>{}</platform>\n    <version_num>{}</version_num>\n    \
             <plan_class>{}</plan_class>\n</result>",
            self.name,
            self.deadline_s,
            protocol::boinc::OUTPUT_NAME,
            escaped(&self.platform.platform),
            self.version,
            escaped(&self.platform.plan_class),
        );
    }

    fn render_version(&self, out: &mut String, release: &Release) {
        let _ = writeln!(
            out,
            "<app_version>\n    <app_name>{}</app_name>\n    <version_num>{}</version_num>\n    \
             <api_version>{API_VERSION}</api_version>",
            escaped(&self.app),
            release.version_num,
        );
        for file in &self.platform.files {
            let main = if file.main_program {
                "        <main_program/>\n"
            } else {
                ""
            };
            let _ = writeln!(
                out,
                "    <file_ref>\n        <file_name>{}</file_name>\n{main}    </file_ref>",
                escaped(&file.name)
            );
        }
        let _ = writeln!(
            out,
            "    <platform>{}</platform>\n    <plan_class>{}</plan_class>\n    <avg_ncpus>{}</avg_ncpus>\n    \
             <flops>{}</flops>\n</app_version>",
            escaped(&self.platform.platform),
            escaped(&self.platform.plan_class),
            decimal(f64::from(self.processors)),
            decimal(self.flops),
        );
    }

    fn render_unit(&self, out: &mut String) {
        let estimate = self.seconds * self.flops;
        let _ = writeln!(
            out,
            "<workunit>\n    <name>{}</name>\n    <app_name>{}</app_name>\n    \
             <rsc_fpops_est>{}</rsc_fpops_est>\n    <rsc_fpops_bound>{}</rsc_fpops_bound>\n    \
             <rsc_memory_bound>{}</rsc_memory_bound>\n    <rsc_disk_bound>{}</rsc_disk_bound>",
            self.name,
            escaped(&self.app),
            decimal(estimate),
            decimal(estimate * BOUND_RATIO),
            decimal(self.memory_bytes as f64),
            decimal(self.disk_bytes as f64),
        );
        for input in &self.inputs {
            let _ = writeln!(
                out,
                "    <file_ref>\n        <file_name>{}</file_name>\n        <open_name>{}</open_name>\n    </file_ref>",
                input.name, input.open_name
            );
        }
        out.push_str("</workunit>\n");
    }
}

fn line(out: &mut String, name: &str, value: impl std::fmt::Display) {
    let _ = writeln!(out, "<{name}>{value}</{name}>");
}

fn decimal(number: f64) -> String {
    format!("{number:.6}")
}

/// Clients read messages line by line.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests;
