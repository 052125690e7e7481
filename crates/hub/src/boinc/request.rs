//! What a client asks of the scheduler: the parts of its request that mean something here.

use super::xml::{Element, XmlError, as_text, cut, cut_front};

/// Longest text taken over from a request.
const TEXT_BYTES_MAX: usize = 255;
/// Longest end of an application's messages that is kept.
const STDERR_BYTES_MAX: usize = 4_096;
/// Longest key in a request: the public key of the project is half of that.
const KEY_BYTES_MAX: usize = 4_096;
/// Platforms looked at.
const PLATFORMS_MAX: usize = 16;
/// Reports taken at once; a client sends the others again, because they are not acknowledged.
pub(crate) const REPORTS_MAX: usize = 64;
/// Tasks looked at that a client says it has. It is given one at a time.
pub(crate) const HELD_MAX: usize = 256;
/// Messages of applications taken at once: the newest.
const TRICKLES_MAX: usize = 64;
/// Files looked at that a client keeps: more are loaded again, or kept.
const FILES_MAX: usize = 1_024;

/// A request.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct SchedulerRequest {
    pub(crate) authenticator: String,
    /// 0 for a host that does not know its number.
    pub(crate) host: u64,
    pub(crate) sequence: u64,
    pub(crate) client_version: String,
    pub(crate) allows_multiple_clients: bool,
    /// The client's own first.
    pub(crate) platforms: Vec<String>,
    /// Whether it wants work for its processors.
    pub(crate) wants_work: bool,
    /// The code signing key that it holds, without space.
    pub(crate) code_sign_key: String,
    pub(crate) cross_project_id: String,
    /// The host's clock, Unix milliseconds.
    pub(crate) now_ms: Option<u64>,
    /// Share of the processors that the user allows, in percent.
    pub(crate) processors_percent: f64,
    pub(crate) machine: Machine,
    pub(crate) reports: Vec<Report>,
    /// How many more there were than are taken at once.
    pub(crate) reports_left: usize,
    pub(crate) trickles: Vec<Trickle>,
    /// Sticky files that the host holds.
    pub(crate) files: Vec<HeldFile>,
    /// Tasks that the host still has.
    pub(crate) held: Vec<String>,
    /// How many more it lists than are looked at.
    pub(crate) held_left: usize,
}

/// A host, as its client describes it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Machine {
    /// The client's own name of the host.
    pub(crate) cpid: String,
    pub(crate) timezone: i64,
    pub(crate) processors: u32,
    pub(crate) vendor: String,
    pub(crate) model: String,
    pub(crate) flops: f64,
    pub(crate) iops: f64,
    pub(crate) memory_bytes: u64,
    pub(crate) disk_bytes: u64,
    pub(crate) os_name: String,
    pub(crate) os_version: String,
    /// Bytes of the disk that this project may use.
    pub(crate) disk_share_bytes: u64,
    /// Bytes of the memory that the user lets BOINC use at the best of times; 0 if the client does not say.
    pub(crate) memory_share_bytes: u64,
}

/// What became of a task, as the client says.
#[derive(Debug, PartialEq)]
pub(crate) struct Report {
    pub(crate) name: String,
    pub(crate) state: i64,
    pub(crate) exit_status: i64,
    pub(crate) cpu_ms: u64,
    pub(crate) elapsed_ms: u64,
    pub(crate) stderr: String,
}

/// A message of a running application.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Trickle {
    pub(crate) result: String,
    /// How far it is, in millionths.
    pub(crate) progress_ppm: Option<u32>,
    /// Inner steps done.
    pub(crate) steps: Option<u32>,
    /// Training loss in 10^-6 nats a token.
    pub(crate) loss_micronats: Option<u32>,
}

/// A file that the client keeps.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct HeldFile {
    pub(crate) name: String,
    pub(crate) bytes: u64,
}

impl SchedulerRequest {
    /// Reads a request.
    pub(crate) fn read(bytes: &[u8]) -> Result<Self, XmlError> {
        let text = as_text(bytes);
        let root = Element::read(&text)?;
        if root.name() != "scheduler_request" {
            return Err(XmlError::Cut);
        }
        let own = root.short("platform_name", TEXT_BYTES_MAX);
        let others = root.all("alt_platform");
        let others = others.map(|it| it.short("name", TEXT_BYTES_MAX));
        let times = root.child("time_stats");
        let now = times.map_or(0.0, |it| it.number("now"));
        let preferences = root
            .child("working_global_preferences")
            .and_then(|it| it.child("global_preferences"));
        let percent = preferences.map_or(0.0, |it| it.number("max_ncpus_pct"));
        let key = root.child("code_sign_key").map(Element::text);
        let held = root.child("other_results");
        let held = || held.into_iter().flat_map(|it| it.all("other_result"));
        let trickles = root.all("msg_from_host").count();
        Ok(Self {
            authenticator: root.short("authenticator", TEXT_BYTES_MAX),
            host: root.count("hostid"),
            sequence: root.count("rpc_seqno"),
            client_version: ["major_version", "minor_version", "release"]
                .map(|it| {
                    root.count(&format!("core_client_{it}"))
                        .min(9_999)
                        .to_string()
                })
                .join("."),
            allows_multiple_clients: root.flag("allow_multiple_clients"),
            platforms: [own]
                .into_iter()
                .chain(others)
                .take(PLATFORMS_MAX)
                .collect(),
            wants_work: (root.number("cpu_req_secs") > 0.0
                || root.number("cpu_req_instances") > 0.0)
                && !root.flag("dont_send_work"),
            code_sign_key: without_space(cut(key.unwrap_or_default(), KEY_BYTES_MAX)),
            cross_project_id: root.short("cross_project_id", 64),
            now_ms: (now > 0.0).then_some((now * 1_000.0) as u64),
            processors_percent: if percent > 0.0 {
                percent.min(100.0)
            } else {
                100.0
            },
            machine: machine(&root, preferences),
            reports: root.all("result").take(REPORTS_MAX).map(report).collect(),
            reports_left: root.all("result").skip(REPORTS_MAX).count(),
            trickles: root
                .all("msg_from_host")
                .skip(trickles.saturating_sub(TRICKLES_MAX))
                .filter_map(trickle)
                .collect(),
            files: root
                .all("file_info")
                .take(FILES_MAX)
                .map(held_file)
                .collect(),
            held: held()
                .take(HELD_MAX)
                .map(|it| it.short("name", TEXT_BYTES_MAX))
                .collect(),
            held_left: held().skip(HELD_MAX).count(),
        })
    }
}

fn machine(root: &Element<'_>, preferences: Option<&Element<'_>>) -> Machine {
    let disk = root.child("disk_usage");
    let disk_share_bytes = disk.map_or(0, |it| it.count("d_project_share"));
    let Some(info) = root.child("host_info") else {
        return Machine {
            disk_share_bytes,
            ..Machine::default()
        };
    };
    let text = |name| info.short(name, TEXT_BYTES_MAX);
    let memory_percent = ["ram_max_used_busy_pct", "ram_max_used_idle_pct"]
        .map(|name| preferences.map_or(0.0, |it| it.number(name)))
        .into_iter()
        .fold(0.0, f64::max)
        .min(100.0);
    let memory_bytes = info.count("m_nbytes");
    Machine {
        cpid: info.short("host_cpid", 64),
        timezone: info.number("timezone").clamp(-86_400.0, 86_400.0) as i64,
        processors: info.count("p_ncpus").clamp(1, 4_096) as u32,
        vendor: text("p_vendor"),
        model: text("p_model"),
        flops: info.number("p_fpops").clamp(0.0, 1e15),
        iops: info.number("p_iops").clamp(0.0, 1e15),
        memory_bytes,
        disk_bytes: info.count("d_total"),
        os_name: text("os_name"),
        os_version: text("os_version"),
        disk_share_bytes,
        memory_share_bytes: (memory_bytes as f64 / 100.0 * memory_percent) as u64,
    }
}

fn report(result: &Element<'_>) -> Report {
    let milliseconds = |name| (result.number(name).max(0.0) * 1_000.0) as u64;
    let stderr = result.child("stderr_out").map(Element::text);
    Report {
        name: result.short("name", TEXT_BYTES_MAX),
        state: result.number("state") as i64,
        exit_status: result.number("exit_status") as i64,
        cpu_ms: milliseconds("final_cpu_time"),
        elapsed_ms: milliseconds("final_elapsed_time"),
        stderr: cut_front(stderr.unwrap_or_default(), STDERR_BYTES_MAX).to_owned(),
    }
}

/// The body is whatever the application wrote: looked through for the few things that are known.
fn trickle(message: &Element<'_>) -> Option<Trickle> {
    let between = |name: &str| {
        let (_, rest) = message.text().split_once(&format!("<{name}>"))?;
        let (found, _) = rest.split_once(&format!("</{name}>"))?;
        Some(cut(found.trim(), TEXT_BYTES_MAX))
    };
    let number = |name: &str, max: f64| {
        let number: f64 = between(name)?.parse().ok()?;
        (0.0..=max).contains(&number).then_some(number)
    };
    let micro = |it: f64| (it * 1e6) as u32;
    Some(Trickle {
        result: between("result_name")?.to_owned(),
        progress_ppm: number("fraction_done", 1.0).map(micro),
        steps: number("steps", f64::from(u32::MAX)).map(|it| it as u32),
        loss_micronats: number("loss", 1_000.0).map(micro),
    })
}

fn held_file(file: &Element<'_>) -> HeldFile {
    HeldFile {
        name: file.short("name", TEXT_BYTES_MAX),
        bytes: file.count("nbytes"),
    }
}

/// A text without any space, as keys are compared.
pub(crate) fn without_space(text: &str) -> String {
    text.split_whitespace().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const REQUEST: &str = include_str!("request/sample.xml");

    #[test]
    fn a_request_of_a_stock_client_is_understood() {
        let request = SchedulerRequest::read(REQUEST.as_bytes()).unwrap();
        assert_eq!(request.authenticator, "d_00112233445566778899aabbccddeeff");
        assert_eq!((request.host, request.sequence), (1, 10));
        assert_eq!(request.client_version, "7.20.5");
        assert_eq!(
            request.platforms,
            ["x86_64-pc-linux-gnu", "i686-pc-linux-gnu"]
        );
        assert!(request.wants_work && !request.allows_multiple_clients);
        assert!(request.code_sign_key.starts_with("1024c19ca162"));
        assert_eq!(request.now_ms, Some(1_795_345_278_555));
        assert_eq!(request.processors_percent, 100.0);
        assert_eq!(request.machine.cpid, "0123456789abcdef0123456789abcdef");
        assert_eq!(request.machine.disk_share_bytes, 90_000_000_000);
        let [report] = request.reports.as_slice() else {
            panic!("one report");
        };
        assert_eq!((report.state, report.exit_status), (5, 0));
        assert_eq!(report.name, "t_1_0");
        assert_eq!(report.elapsed_ms, 32_084);
        assert!(report.stderr.contains("ctl <suspend/>"));
        let told = Trickle {
            result: "t_2_0".into(),
            progress_ppm: Some(250_000),
            steps: None,
            loss_micronats: Some(1_230_000),
        };
        assert_eq!(request.trickles, [told]);
        let file = HeldFile {
            name: "ab".repeat(32),
            bytes: 256,
        };
        assert_eq!(request.files, [file]);
        assert_eq!(request.held, ["t_2_0"]);
    }

    #[test]
    fn of_long_lists_so_much_is_taken() {
        let many = |item: &str, count: usize| -> String {
            let items = (0..count).map(|it| item.replace('#', &it.to_string()));
            items.collect()
        };
        let read = |items: String| {
            let text = format!("<scheduler_request>{items}</scheduler_request>");
            SchedulerRequest::read(text.as_bytes()).unwrap()
        };
        let reports = read(many("<result><name>t_#_0</name></result>", 3_000));
        assert_eq!(reports.reports.len(), REPORTS_MAX);
        assert_eq!(reports.reports_left, 3_000 - REPORTS_MAX);
        assert_eq!(reports.reports[0].name, "t_0_0");
        let held = many("<other_result><name>t_#_0</name></other_result>", 3_000);
        let held = read(format!("<other_results>{held}</other_results>"));
        assert_eq!((held.held.len(), held.held_left), (256, 3_000 - 256));
        let trickles = many(
            "<msg_from_host><result_name>t_#_0</result_name></msg_from_host>",
            1_000,
        );
        let trickles = read(trickles).trickles;
        assert_eq!(trickles.len(), TRICKLES_MAX);
        assert_eq!(trickles.last().unwrap().result, "t_999_0");
        let files = read(many("<file_info><name>#</name></file_info>", 3_000));
        assert_eq!(files.files.len(), FILES_MAX);
    }

    #[test]
    fn each_cut_and_each_changed_byte_is_survived() {
        let bytes = REQUEST.as_bytes();
        for at in 0..bytes.len() {
            let _ = SchedulerRequest::read(&bytes[..at]);
            let mut changed = bytes.to_vec();
            changed[at] ^= 0x15;
            let _ = SchedulerRequest::read(&changed);
        }
        assert!(SchedulerRequest::read(b"<scheduler_reply></scheduler_reply>").is_err());
        assert!(SchedulerRequest::read(&[0xff; 5_000]).is_err());
    }
}
