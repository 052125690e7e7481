//! Calls about who keeps a run: heads, proofs, takeovers.

use data_encoding::HEXLOWER;
use protocol::{
    Hash,
    api::mirrors::{RunHead, SHOWN_PROOF_BYTES_MAX, TakeOver},
    equivocation::{EQUIVOCATION_BYTES_MAX, Equivocation},
    succession::{GENERATIONS_MAX, Sealing, Succession},
    units::RunId,
};
use reqwest::Method;

use super::{ClientError, HubClient};

impl HubClient {
    /// Where this hub's or mirror's copy of a run stands, and who keeps the run as far as it knows.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn head(&self, run: RunId) -> Result<RunHead, ClientError> {
        self.json(self.get(&format!("runs/{run}/head"))).await
    }

    /// Where a copy stands, and who keeps the run by the statements that it shows, each checked to be signed by a key that the
    /// charter names; `begun` is any sealing of the run.
    ///
    /// # Errors
    /// [`ClientError`]; [`ClientError::Malformed`] if a statement does not hold.
    pub async fn head_and_sealing(
        &self,
        begun: &Sealing,
    ) -> Result<(RunHead, Sealing), ClientError> {
        let head = self.head(begun.run()).await?;
        let sealing = sealing_of(&head, begun).map_err(|problem| ClientError::Malformed {
            what: "the statement who keeps the run",
            problem,
        })?;
        Ok((head, sealing))
    }

    /// A proof of two statements that exclude each other, checked.
    ///
    /// # Errors
    /// [`ClientError`]; [`ClientError::Malformed`] if it proves nothing, or is of another run.
    pub async fn equivocation(&self, run: RunId, id: Hash) -> Result<Equivocation, ClientError> {
        let call = self
            .get(&format!("runs/{run}/equivocations/{id}"))
            .without_timeout()
            .body_max(EQUIVOCATION_BYTES_MAX);
        let malformed = |problem: String| ClientError::Malformed {
            what: "a proof",
            problem,
        };
        let proof = Equivocation::from_bytes(&self.bytes(call).await?)
            .map_err(|error| malformed(error.to_string()))?;
        if proof.first.run != run || proof.id() != id {
            return Err(malformed("it is another one".to_owned()));
        }
        Ok(proof)
    }

    /// Shows a proof to a hub or mirror, which checks and keeps it; false if it is too long to be shown. One attempt.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn show_equivocation(
        &self,
        run: RunId,
        proof: &Equivocation,
    ) -> Result<bool, ClientError> {
        let bytes = proof.to_bytes();
        if SHOWN_PROOF_BYTES_MAX < bytes.len() {
            return Ok(false);
        }
        let call = self
            .call(Method::POST, &format!("runs/{run}/equivocations"))
            .once()
            .bytes("application/octet-stream", bytes);
        self.bytes(call).await?;
        Ok(true)
    }

    /// Has a mirror take a run over. Loopback peers need no token; others need the mirror's operator's.
    ///
    /// One attempt: repeating it is safe only for a person who looks first.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn take_over(
        &self,
        run: RunId,
        request: &TakeOver,
        operator_token: Option<&str>,
    ) -> Result<RunHead, ClientError> {
        let body = serde_json::to_vec(request).expect("a request of one flag has a JSON form");
        let mut call = self
            .call(Method::POST, &format!("runs/{run}/takeover"))
            .once()
            .bytes("application/json", body);
        if let Some(token) = operator_token {
            call = call.header("authorization", format!("Bearer {token}"));
        }
        self.json(call).await
    }
}

/// Who keeps a run by what a head shows, checked.
pub(crate) fn sealing_of(head: &RunHead, begun: &Sealing) -> Result<Sealing, String> {
    if head.successions.len() as u64 > GENERATIONS_MAX {
        return Err(format!("{} takeovers", head.successions.len()));
    }
    let read = |text: &String| {
        let bytes = HEXLOWER
            .decode(text.as_bytes())
            .map_err(|error| error.to_string())?;
        Succession::from_bytes(&bytes).map_err(|error| error.to_string())
    };
    let statements: Vec<Succession> = head
        .successions
        .iter()
        .map(read)
        .collect::<Result<_, _>>()?;
    let sealing = begun.with(&statements).map_err(|error| error.to_string())?;
    if sealing.generation() != head.generation {
        return Err(format!(
            "it speaks of {} takeovers and shows {}",
            head.generation,
            sealing.generation()
        ));
    }
    Ok(sealing)
}
