//! Calls about an account at a hub: signing in, links for browsers, keys that act for others.

use data_encoding::HEXLOWER;
use protocol::{
    PublicKey, SecretKey, Signature,
    api::{
        CommandReply,
        accounts::{
            AccountSummary, AttachWorker, HostSummary, LinkKey, SESSION_COOKIE, SignIn, SignInLink,
        },
    },
    identity,
    units::{AccountId, RunId},
};
use reqwest::Method;
use serde::Serialize;

use super::{ClientError, HubClient, request::Call};

/// Who is signed in, and what shows it.
#[derive(Clone, Debug)]
pub struct Session {
    /// The cookie, name and value.
    cookie: String,
    /// The key that the hub holds for the account: what the account's machines are bound to.
    pub hub_key: PublicKey,
    /// The account.
    pub account: AccountSummary,
}

impl HubClient {
    /// Signs in.
    ///
    /// # Errors
    /// [`ClientError`]; [`ClientError::Refused`] for a wrong password or signature.
    pub async fn sign_in(&self, given: &SignIn) -> Result<Session, ClientError> {
        let (headers, body) = self
            .headers_and_bytes(posted(self.call(Method::POST, "sessions"), given))
            .await?;
        let malformed = |problem: String| ClientError::Malformed {
            what: "the answer to a sign-in",
            problem,
        };
        let account: AccountSummary =
            serde_json::from_slice(&body).map_err(|error| malformed(error.to_string()))?;
        let set = headers.get("set-cookie").and_then(|it| it.to_str().ok());
        let cookie = set
            .and_then(|it| it.split(';').next())
            .filter(|it| it.starts_with(SESSION_COOKIE))
            .ok_or_else(|| malformed("it opens no session".to_owned()))?;
        let hub_key = account
            .hub_key
            .parse()
            .map_err(|error: protocol::key::KeyError| malformed(error.to_string()))?;
        Ok(Session {
            cookie: cookie.to_owned(),
            hub_key,
            account,
        })
    }

    /// Signs in by the account's own key; `now_ms` is a clock that is right to a few minutes.
    ///
    /// # Errors
    /// As [`Self::sign_in`].
    pub async fn sign_in_by_key(
        &self,
        key: &SecretKey,
        now_ms: u64,
    ) -> Result<Session, ClientError> {
        let info = self.hub_info().await?;
        let hub: PublicKey =
            info.key
                .parse()
                .map_err(|error: protocol::key::KeyError| ClientError::Malformed {
                    what: "the hub's introduction",
                    problem: error.to_string(),
                })?;
        let signature = identity::sign_in(key, hub, now_ms);
        self.sign_in(&SignIn::Key {
            key: key.public().to_string(),
            time_ms: now_ms,
            signature: HEXLOWER.encode(&signature.0),
        })
        .await
    }

    /// The account's machines with BOINC clients, each with its newest tasks.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn hosts(&self, session: &Session) -> Result<Vec<HostSummary>, ClientError> {
        let call = self.call(Method::GET, "account/hosts");
        self.json(session.shown_with(call)).await
    }

    /// A link that signs a browser in, once.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn make_link(&self, session: &Session) -> Result<SignInLink, ClientError> {
        let call = self.call(Method::POST, "account/links").once();
        self.json(session.shown_with(call)).await
    }

    /// Has the log of a run say that the hub's key acts for `own`, which signed `half`.
    ///
    /// # Errors
    /// [`ClientError`]; code `no_machine` while no machine of the account has joined the run.
    pub async fn link_key(
        &self,
        session: &Session,
        run: RunId,
        own: AccountId,
        half: Signature,
    ) -> Result<(), ClientError> {
        let link = LinkKey {
            run: run.to_string(),
            key: own.0.to_string(),
            signature: HEXLOWER.encode(&half.0),
        };
        let call = posted(self.call(Method::POST, "account/key"), &link);
        let CommandReply { .. } = self.json(session.shown_with(call)).await?;
        Ok(())
    }

    /// Binds a worker that signed `half` to the account.
    ///
    /// # Errors
    /// [`ClientError`]; code `not_joined` if it has not joined the run.
    pub async fn attach_worker(
        &self,
        session: &Session,
        run: RunId,
        worker: PublicKey,
        half: Signature,
    ) -> Result<(), ClientError> {
        let attach = AttachWorker {
            run: run.to_string(),
            worker: worker.to_string(),
            signature: HEXLOWER.encode(&half.0),
        };
        let call = posted(self.call(Method::POST, "account/workers"), &attach);
        let CommandReply { .. } = self.json(session.shown_with(call)).await?;
        Ok(())
    }
}

impl Session {
    fn shown_with(&self, call: Call) -> Call {
        call.header("cookie", self.cookie.clone())
    }
}

fn posted<T: Serialize>(call: Call, body: &T) -> Call {
    let body = serde_json::to_vec(body).expect("a request of texts has a JSON form");
    call.bytes("application/json", body)
}
