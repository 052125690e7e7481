//! Finding the hub that keeps the run, in a network whose hosts come, go and lie. Time is the runtime's.

use std::sync::Arc;

use network::disk::RealDisk;
use protocol::{SecretKey, api::mirrors::SUCCESSION};

use super::*;
use crate::testing::{Host, Hosts, replaceable, takeovers, work};

const A: &str = "http://a";
const M: &str = "http://m";
const B: &str = "http://b";

struct Stage {
    hosts: Hosts,
    client: HubClient,
    news: watch::Receiver<News>,
    token: watch::Sender<Option<Token>>,
    held: Arc<HeldRound>,
    _folder: tempfile::TempDir,
}

impl Stage {
    /// A poller that was told of A and, by the charter, of the mirror M.
    fn new() -> Self {
        let (hosts, folder) = (Hosts::default(), tempfile::tempdir().unwrap());
        let client = hosts.client(A);
        client.add_addresses([M]);
        let charter = replaceable();
        let (sender, news) = watch::channel(News::default());
        let (token, shown) = watch::channel(None);
        let held = Arc::<HeldRound>::default();
        let file = folder.path().join("takeovers");
        let poller = Poller {
            client: client.clone(),
            run: charter.id(),
            worker: WorkerId(SecretKey::from_entropy([1; 32]).public()),
            bounds: Bounds::of(&charter),
            takeovers: Takeovers::open(Arc::new(RealDisk), file, &charter, client.clone()),
            token: shown,
            held: Arc::clone(&held),
            news: sender,
        };
        tokio::spawn(poller.poll());
        Self {
            hosts,
            client,
            news,
            token,
            held,
            _folder: folder,
        }
    }

    async fn until(&mut self, is_wanted: impl FnMut(&News) -> bool) -> News {
        let wait = Duration::from_secs(600);
        let news = tokio::time::timeout(wait, self.news.wait_for(is_wanted)).await;
        news.expect("within ten minutes").unwrap().clone()
    }

    async fn generation(&mut self, generation: u64) -> News {
        self.until(|news| {
            let known = news.work.as_ref().map(|(work, _)| work.generation);
            known == Some(generation) && news.problem.is_none()
        })
        .await
    }

    fn polls(&self, host: &str) -> Vec<crate::testing::Asked> {
        self.hosts.asked(host, &http::Method::GET, "/work")
    }
}

#[tokio::test(start_paused = true)]
async fn a_run_is_followed_to_its_next_hub() {
    let mut stage = Stage::new();
    stage.hosts.set("a", Host::hub(&[]));
    stage.generation(0).await;
    stage.token.send_replace(Some(Token {
        text: "secret".into(),
        address: A.into(),
    }));
    stage.until(|it| it.token.is_some()).await;

    // The hub dies; its mirror knows of no other.
    stage.hosts.lock().hosts.clear();
    stage.hosts.set("m", Host::mirror(A, &[]));
    let news = stage.until(|it| it.problem.is_some()).await;
    let problem = news.problem.unwrap();
    assert!(
        problem.starts_with("no hub of the run answers"),
        "{problem}"
    );

    // Another mirror took over; neither charter nor owner knew its address.
    let taken = takeovers(&[(10, B)]);
    stage.hosts.set("m", Host::mirror(B, &taken));
    stage.hosts.set("b", Host::hub(&taken));
    let news = stage.generation(1).await;
    assert_eq!(&*stage.client.current_address(), B);
    assert!(0 < news.reunions);
    let shown = |host: &str, name: &str| {
        let polls = stage.polls(host);
        polls
            .iter()
            .filter(|it| it.headers.contains_key(name))
            .count()
    };
    assert!(0 < shown("a", "authorization"));
    assert_eq!(shown("m", "authorization") + shown("b", "authorization"), 0);
    assert_eq!(shown("b", SUCCESSION), stage.polls("b").len());

    // The old hub comes back and does not know.
    stage.hosts.set("a", Host::hub(&[]));
    stage.client.prefer_address(A);
    stage.until(|it| it.problem.is_some()).await;
    stage.generation(1).await;
    let news = stage.news.borrow().work.clone();
    assert_eq!(news.unwrap().0.generation, 1);
    assert!(
        stage
            .polls("a")
            .last()
            .unwrap()
            .headers
            .contains_key(SUCCESSION)
    );
}

#[tokio::test(start_paused = true)]
async fn a_liar_leads_nobody_away() {
    let mut stage = Stage::new();
    let mut liar = Host::mirror("http://liars", &[]);
    liar.statements = takeovers(&[(10, "http://liars")]);
    liar.statements[0].address = "http://elsewhere".to_owned();
    stage.hosts.set("m", liar);
    stage.hosts.set("liars", Host::hub(&[]));
    stage.hosts.set("elsewhere", Host::hub(&[]));
    let news = stage.until(|it| it.problem.is_some()).await;
    let problem = news.problem.unwrap();
    assert!(
        problem.contains("no succession key of the run names"),
        "{problem}"
    );
    // One that only says that it is the newer hub.
    let mut boaster = Host::hub(&[]);
    boaster.work.as_mut().unwrap().generation = 7;
    stage.hosts.set("m", boaster);
    stage
        .until(|it| {
            it.problem
                .as_ref()
                .is_some_and(|it| it.contains("proves 0"))
        })
        .await;
    assert!(stage.news.borrow().work.is_none());
    for host in ["liars", "elsewhere"] {
        assert!(stage.hosts.asked(host, &http::Method::GET, "").is_empty());
    }
    stage.hosts.set("a", Host::hub(&[]));
    stage.generation(0).await;
}

#[tokio::test(start_paused = true)]
async fn an_older_log_and_a_forgotten_model_are_news() {
    let mut stage = Stage::new();
    stage.hosts.set("a", Host::hub(&[]));
    let before = stage.generation(0).await.reunions;
    let mut older = Host::hub(&[]);
    older.work = Some(Work {
        log_length: 30,
        ..work()
    });
    stage.hosts.set("a", older);
    let news = stage.until(|it| it.work.as_ref().is_some_and(|(it, _)| it.log_length == 30));
    assert_eq!(news.await.reunions, before + 1);
    stage.held.set(Some(9));
    stage.until(|it| it.held == Some(9)).await;
    stage.held.ask_for_all();
    stage.until(|it| it.held.is_none()).await;
}
