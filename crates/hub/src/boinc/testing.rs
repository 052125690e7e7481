//! A hub with an open door in a folder of its own, and a client of it that tests play by hand.

mod run;

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
};

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::ConnectInfo,
    http::{HeaderMap, Request, StatusCode, header},
};
use bytes::Bytes;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

pub(crate) use self::run::App;
use super::{
    Door,
    accounts::password_hash,
    release::{self, Program, Signing, SigningKey},
    request::without_space,
};
use crate::{Config, Ground, Hub, Service};

/// Where clients are.
pub(crate) const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
/// What clients call themselves.
const AGENT: &str = "BOINC client (x86_64-pc-linux-gnu 7.20.5)";
/// The platform that the release is for.
pub(crate) const PLATFORM: &str = "x86_64-pc-linux-gnu";
/// Longest answer that tests read.
const ANSWER_BYTES_MAX: usize = 64 << 20;
/// The application of the tests: nobody runs it.
pub(crate) const PROGRAM: &[u8] = b"no program at all, but long enough to be asked for in parts";

/// A hub with an open door.
pub(crate) struct Fixture {
    folder: tempfile::TempDir,
    config: Config,
    pub(crate) service: Service,
    router: Router,
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("{}", self.text()))
    }
}

impl Fixture {
    pub(crate) async fn new() -> Self {
        Self::with(Config::default()).await
    }

    /// One with these limits.
    pub(crate) async fn with(config: Config) -> Self {
        let folder = tempfile::tempdir().unwrap();
        write_release(folder.path(), 101, PROGRAM);
        let config = Config {
            folder: folder.path().to_owned(),
            boinc_release: Some(folder.path().join("release")),
            ..config
        };
        let service = open(&config).await;
        Self {
            router: service.router(),
            folder,
            config,
            service,
        }
    }

    /// Puts another release, by another key, in the place of the one that the hub was started with.
    pub(crate) fn release(&self, version_num: u32, content: &[u8]) {
        std::fs::remove_dir_all(self.folder.path().join("release")).unwrap();
        write_release(self.folder.path(), version_num, content);
    }

    /// The same hub after a restart.
    pub(crate) async fn restarted(self) -> Self {
        self.service.close().await;
        let Self {
            folder,
            config,
            service,
            ..
        } = self;
        drop(service);
        let service = open(&config).await;
        Self {
            router: service.router(),
            folder,
            config,
            service,
        }
    }

    /// Why the hub can't be started again.
    pub(crate) async fn cannot_open(self) -> String {
        self.service.close().await;
        drop(self.service);
        let opened = Service::open(self.config, Ground::machine(), CancellationToken::new());
        format!("{:#}", opened.await.err().expect("it does not open"))
    }

    pub(crate) fn hub(&self) -> &Hub {
        &self.service.hub
    }

    pub(crate) fn door(&self) -> &Door {
        self.service.hub.door.as_ref().unwrap()
    }

    /// Sends a request as a client does.
    pub(crate) async fn send(&self, request: axum::http::request::Builder, body: Body) -> Answer {
        self.send_from(CLIENT, request, body).await
    }

    async fn send_from(
        &self,
        client: IpAddr,
        request: axum::http::request::Builder,
        body: Body,
    ) -> Answer {
        let request = request
            .header(header::HOST, "hub.example.org:8700")
            .extension(ConnectInfo(SocketAddr::from((client, 50_000))))
            .body(body)
            .unwrap();
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        Answer {
            status: parts.status,
            headers: parts.headers,
            body: to_bytes(body, ANSWER_BYTES_MAX).await.unwrap(),
        }
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        let request = Request::get(path).header(header::USER_AGENT, AGENT);
        self.send(request, Body::empty()).await
    }

    pub(crate) async fn post(&self, path: &str, body: impl Into<Body>) -> Answer {
        let request = Request::post(path).header(header::USER_AGENT, AGENT);
        self.send(request, body.into()).await
    }

    /// The same from another address.
    pub(crate) async fn post_from(&self, last: u8, path: &str, body: impl Into<Body>) -> Answer {
        let request = Request::post(path).header(header::USER_AGENT, AGENT);
        let client = IpAddr::V4(Ipv4Addr::new(192, 0, 2, last));
        self.send_from(client, request, body.into()).await
    }

    /// Makes an account as a client does; gives the device's key.
    pub(crate) async fn account(&self, email: &str) -> String {
        let hash = password_hash(email, "secret99");
        let path = format!(
            "/create_account.php?email_addr={email}&passwd_hash={hash}&user_name=Alice%20B"
        );
        let answer = self.get(&path).await.text();
        let key = between(&answer, "authenticator");
        key.unwrap_or_else(|| panic!("{answer}"))
    }
}

fn write_release(folder: &Path, version_num: u32, content: &[u8]) {
    let file = folder.join("program");
    std::fs::write(&file, content).unwrap();
    let program = Program {
        app: "athome",
        version_num,
        platform: PLATFORM,
        plan_class: "",
        file: &file,
    };
    let by = Signing {
        key: &SigningKey::generate().unwrap(),
        previous: None,
    };
    release::sign(&folder.join("release"), by, program).unwrap();
}

async fn open(config: &Config) -> Service {
    Service::open(config.clone(), Ground::machine(), CancellationToken::new())
        .await
        .unwrap()
}

/// The text of the first element of a name.
pub(crate) fn between(text: &str, name: &str) -> Option<String> {
    let (_, rest) = text.split_once(&format!("<{name}>"))?;
    let (found, _) = rest.split_once(&format!("</{name}>"))?;
    Some(found.trim().to_owned())
}

/// The texts of all elements of a name.
pub(crate) fn all_between(text: &str, name: &str) -> Vec<String> {
    let (open, close) = (format!("<{name}>"), format!("</{name}>"));
    let parts = text.split(&open).skip(1);
    let parts = parts.filter_map(|it| Some(it.split_once(&close)?.0));
    parts.map(|it| it.trim().to_owned()).collect()
}

/// A client that tests play by hand.
#[derive(Clone)]
pub(crate) struct HandMade {
    pub(crate) key: String,
    pub(crate) host: u64,
    pub(crate) sequence: u64,
    pub(crate) cpid: String,
    pub(crate) wants_work: bool,
    pub(crate) files: Vec<String>,
    pub(crate) held: Vec<String>,
    /// The code signing key, once it is known.
    pub(crate) code_sign_key: String,
    /// What is done: name, state and exit status.
    pub(crate) reports: Vec<(String, u32, i32)>,
    pub(crate) trickle: String,
}

impl HandMade {
    pub(crate) fn new(key: &str) -> Self {
        Self {
            key: key.to_owned(),
            host: 0,
            sequence: 0,
            cpid: "0123456789abcdef0123456789abcdef".to_owned(),
            wants_work: true,
            files: vec![],
            held: vec![],
            code_sign_key: String::new(),
            reports: vec![],
            trickle: String::new(),
        }
    }

    /// Its next request.
    pub(crate) fn request(&self) -> String {
        let wanted = u32::from(self.wants_work);
        let reports: String = self
            .reports
            .iter()
            .map(|(name, state, exit)| {
                format!(
                    "<result>\n<name>{name}</name>\n<final_elapsed_time>3.5</final_elapsed_time>\n\
                     <exit_status>{exit}</exit_status>\n<state>{state}</state>\n\
                     <stderr_out>\n<![CDATA[ <oops & ]]>\n</stderr_out>\n</result>\n"
                )
            })
            .collect();
        let files = self.files.iter();
        let files: String = files
            .map(|it| format!("<file_info><name>{it}</name><nbytes>1.0</nbytes></file_info>\n"))
            .collect();
        let held = self.held.iter();
        let held: String = held
            .map(|it| format!("<other_result><name>{it}</name></other_result>\n"))
            .collect();
        let key = match self.code_sign_key.as_str() {
            "" => String::new(),
            key => format!("<code_sign_key>\n{key}\n</code_sign_key>\n"),
        };
        format!(
            "<scheduler_request>\n<authenticator>{}</authenticator>\n<hostid>{}</hostid>\n<rpc_seqno>{}</rpc_seqno>\n\
             <core_client_major_version>7</core_client_major_version>\n<cpu_req_secs>{wanted}</cpu_req_secs>\n\
             <platform_name>{PLATFORM}</platform_name>\n{key}<host_info>\n<host_cpid>{}</host_cpid>\n\
             <p_ncpus>2</p_ncpus>\n<p_model>Example</p_model>\n<p_fpops>1e9</p_fpops>\n</host_info>\n\
             {reports}{}{files}<other_results>\n{held}</other_results>\n</scheduler_request>\n",
            self.key, self.host, self.sequence, self.cpid, self.trickle
        )
    }

    /// Asks the scheduler and takes note of the answer.
    pub(crate) async fn ask(&mut self, fixture: &Fixture) -> String {
        self.sequence += 1;
        let answer = fixture.post("/boinc/scheduler", self.request()).await;
        assert_eq!(answer.status, StatusCode::OK);
        let text = answer.text();
        if let Some(host) = between(&text, "hostid") {
            self.host = host.parse().unwrap();
        }
        if let Some(key) = between(&text, "code_sign_key") {
            assert!(text.contains("\n<code_sign_key>\n"));
            self.code_sign_key = key;
        }
        let reported = self.reports.iter().map(|it| it.0.clone());
        let acknowledged = all_between(&text, "result_ack");
        for name in reported {
            assert!(
                acknowledged.iter().any(|it| it.contains(&name)),
                "{name} is not acknowledged: {text}"
            );
        }
        self.reports.clear();
        self.trickle.clear();
        for task in all_between(&text, "result") {
            self.held.push(between(&task, "name").unwrap());
        }
        text
    }

    /// Uploads a result for the task of a reply.
    pub(crate) async fn upload(&self, fixture: &Fixture, reply: &str, output: &[u8]) -> String {
        let head = upload_head(reply, output, 0);
        let body = [head.as_bytes(), output].concat();
        fixture
            .post("/boinc/file_upload_handler", body)
            .await
            .text()
    }
}

/// The head of an upload of a file from an offset on, for the task of a reply.
pub(crate) fn upload_head(reply: &str, output: &[u8], offset: usize) -> String {
    let infos = all_between(reply, "file_info");
    let info = infos.iter().find(|it| it.contains("upload_when_present"));
    let info = info.unwrap_or_else(|| panic!("no task: {reply}"));
    format!(
        "<data_server_request>\n    <core_client_major_version>7</core_client_major_version>\n<file_upload>\n\
         <file_info>\n<name>{}</name>\n<xml_signature>\n{}</xml_signature>\n<max_nbytes>{}</max_nbytes>\n\
         </file_info>\n<nbytes>{}</nbytes>\n<md5_cksum>{}</md5_cksum>\n<offset>{offset}</offset>\n<data>\n",
        between(info, "name").unwrap(),
        between(info, "xml_signature").unwrap(),
        between(info, "max_nbytes").unwrap(),
        output.len(),
        super::accounts::md5_hex(output),
    )
}

/// Whether two keys are the same to a client.
pub(crate) fn is_same_key(one: &str, other: &str) -> bool {
    without_space(one) == without_space(other)
}
