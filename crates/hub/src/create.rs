//! Opening a run: the charter is checked, its blobs must be here, the first model is made and the log begins.

use anyhow::Context;
use data::{shard, shard::Split, tokenizer::Tokenizer};
use protocol::{
    Hash, PublicKey,
    api::CreateRun,
    charter::{Charter, CharterError, ShardReference},
    event::Event,
    log::Head,
    state::State,
    units::{BlobReference, RunId},
};

use crate::{Hub, model::Arithmetic, run::evaluate::HeldOut};

/// Why a run was not created. Nothing of it is kept.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CreateError {
    /// The charter has no meaning.
    #[error(transparent)]
    Charter(#[from] CharterError),
    /// Something about it is wrong.
    #[error("{0}")]
    Wrong(String),
    /// A run of that name exists, with another charter.
    #[error("a run named {0} exists here, with another charter; choose another name")]
    NameTaken(String),
    /// Blobs must be uploaded first.
    #[error("upload these blobs first: {}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))]
    Missing(Vec<Hash>),
    /// The hub's own trouble.
    #[error(transparent)]
    Inside(#[from] anyhow::Error),
}

impl Hub {
    /// Creates a run; the same charter again gives the same run.
    pub(crate) async fn create(&self, request: CreateRun) -> Result<RunId, CreateError> {
        let _turn = self.creating.lock().await;
        let mut charter = Charter::from_toml(&request.charter)?;
        if charter.hub == PublicKey([0; 32]) {
            charter.hub = self.key.public();
        }
        if charter.hub != self.key.public() {
            return Err(CreateError::Wrong(
                "the charter names another hub's key; leave it all zeros to name this hub's"
                    .to_owned(),
            ));
        }
        let id = charter.id();
        if self.find(&id.to_string()).await.is_some() {
            return Ok(id);
        }
        if self.find(&charter.name).await.is_some() {
            return Err(CreateError::NameTaken(charter.name));
        }
        let (parameters, parameters_max) =
            (charter.model.parameter_count(), self.config.parameters_max);
        if parameters > parameters_max {
            return Err(CreateError::Wrong(format!(
                "the model has {parameters} parameters, this hub takes {parameters_max} at most (parameters_max in its settings)"
            )));
        }
        let arithmetic =
            Arithmetic::new(&charter).map_err(|error| CreateError::Wrong(format!("{error:#}")))?;
        self.check_data(&charter).await?;
        let parameters = match &request.parameters {
            None => {
                let (config, seed) = (arithmetic.config.clone(), charter.seed);
                network::world::blocking(move || engine::initial_parameters(&config, seed))
                    .await
                    .context("drawing the first parameters")?
            }
            Some(hash) => self.given_parameters(hash, &arithmetic).await?,
        };
        let model = arithmetic.first_model(parameters);
        let checkpoint = arithmetic.store(&model, id, &self.blobs).await?;
        let event = Event::RunCreated {
            charter: Box::new(charter),
            model: model.state,
            checkpoint,
        };
        let entry = Head::empty().next(&self.key, id, self.clock.now_ms(), event);
        let state = State::create(&entry).context("the charter was checked")?;
        // What a start needs is tried before the log begins: a run that cannot start is none.
        HeldOut::read(&state, &self.blobs)
            .await
            .map_err(|error| CreateError::Wrong(format!("{error:#}")))?;
        self.store.create(&entry, &state).await?;
        self.start(id).await?;
        Ok(id)
    }

    async fn given_parameters(
        &self,
        hash: &str,
        arithmetic: &Arithmetic,
    ) -> Result<Vec<f32>, CreateError> {
        let hash: Hash = hash
            .parse()
            .map_err(|error| CreateError::Wrong(format!("parameters: {error}")))?;
        let Some(bytes) = self.blobs.length(&hash).await? else {
            return Err(CreateError::Missing(vec![hash]));
        };
        let blob = BlobReference { hash, bytes };
        let bytes = self.blobs.read(&blob).await?.context("it was here")?;
        engine::checkpoint::from_safetensors(&bytes, &arithmetic.config)
            .map_err(|error| CreateError::Wrong(format!("parameters: {error}")))
    }

    /// Tokenizer and shards must be here, whole, and what the charter says of them.
    async fn check_data(&self, charter: &Charter) -> Result<(), CreateError> {
        let data = &charter.data;
        let shards = || data.training.iter().chain(&data.held_out);
        let mut missing = Vec::new();
        for blob in shards().map(|it| it.blob).chain([data.tokenizer]) {
            if self.blobs.length(&blob.hash).await? != Some(blob.bytes) {
                missing.push(blob.hash);
            }
        }
        if !missing.is_empty() {
            return Err(CreateError::Missing(missing));
        }
        let tokenizer = self
            .blobs
            .read(&data.tokenizer)
            .await?
            .context("it was here")?;
        let tokenizer = Tokenizer::from_bytes(&tokenizer)
            .map_err(|error| CreateError::Wrong(format!("data.tokenizer: {error}")))?;
        if tokenizer.vocabulary_size() > charter.model.vocab_size {
            return Err(CreateError::Wrong(format!(
                "the tokenizer has {} tokens, the model only {}",
                tokenizer.vocabulary_size(),
                charter.model.vocab_size
            )));
        }
        for (split, references) in [
            (Split::Training, &data.training),
            (Split::HeldOut, &data.held_out),
        ] {
            for reference in references {
                self.check_shard(charter, reference, split).await?;
            }
        }
        Ok(())
    }

    async fn check_shard(
        &self,
        charter: &Charter,
        reference: &ShardReference,
        split: Split,
    ) -> Result<(), CreateError> {
        let wrong = |problem: String| {
            CreateError::Wrong(format!("shard {}: {problem}", reference.blob.hash))
        };
        let bytes = self
            .blobs
            .read(&reference.blob)
            .await?
            .context("it was here")?;
        let shard = shard::decode(&bytes).map_err(|error| wrong(error.to_string()))?;
        if shard.header.split != split {
            return Err(wrong("it is on the other side of the split".to_owned()));
        }
        if shard.header.tokenizer_hash != charter.data.tokenizer.hash {
            return Err(wrong("another tokenizer made it".to_owned()));
        }
        let text_bytes: u64 = shard.header.documents.iter().map(|it| it.text_bytes).sum();
        if shard.tokens.len() as u64 != reference.tokens || text_bytes != reference.text_bytes {
            return Err(wrong(format!(
                "it has {} tokens of {text_bytes} bytes of text, the charter says {} of {}",
                shard.tokens.len(),
                reference.tokens,
                reference.text_bytes
            )));
        }
        Ok(())
    }
}
