//! What a model is served for: as its files or its name say, or the operator.

use crate::commands::StartupError;
use crate::config::TaskChoice;
use crate::http::{Embedder, Reranker, Task};
use crate::text::TextStage;
use models::{ModelConfig, Purpose};

/// A task whose tokens are not known yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settled {
    Generate,
    Embed { shortens: bool },
    Rerank,
}

/// Chooses the task, and sets what the network is loaded for. Nothing in the files of a reranker
/// says that it is one, so that its name has to.
pub fn settle(choice: TaskChoice, name: &str, config: &mut ModelConfig) -> Settled {
    let is_embedder = config.purpose == Purpose::Embedding;
    let is_reranker = name.to_lowercase().contains("reranker");
    let task = match choice {
        TaskChoice::Generate => Settled::Generate,
        TaskChoice::Rerank => Settled::Rerank,
        // All embedding models of Qwen are made to be shortened, others only by chance.
        TaskChoice::Embed => Settled::Embed { shortens: is_embedder },
        TaskChoice::Auto if is_embedder => Settled::Embed { shortens: true },
        TaskChoice::Auto if is_reranker => Settled::Rerank,
        TaskChoice::Auto => Settled::Generate,
    };
    config.purpose = match task {
        Settled::Embed { .. } => Purpose::Embedding,
        Settled::Generate | Settled::Rerank => Purpose::Generation,
    };
    task
}

impl Settled {
    /// Errors: a reranker's tokenizer has no token for an answer.
    pub fn task(self, config: &ModelConfig, text: &TextStage) -> Result<Task, StartupError> {
        let answer = |word: &'static str| {
            let id = text.token_id(word).filter(|id| (id.0 as usize) < text.vocab_size());
            id.ok_or(StartupError::NoAnswerToken { word })
        };
        Ok(match self {
            Settled::Generate => Task::Generate,
            Settled::Embed { shortens } => {
                Task::Embed(Embedder { size: config.hidden_size, shortens })
            }
            Settled::Rerank => Task::Rerank(Reranker { no: answer("no")?, yes: answer("yes")? }),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use models::Checkpoint;
    use std::path::Path;

    /// Of the checkpoint in the tests' data.
    fn settled(choice: TaskChoice, name: &str, purpose: Purpose) -> (Settled, Purpose) {
        let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/models/qwen2-tied");
        let mut config = Checkpoint::open(&data).expect("a checkpoint").config;
        config.purpose = purpose;
        (settle(choice, name, &mut config), config.purpose)
    }

    #[test]
    fn files_and_name_say_what_a_model_is_for() {
        use Purpose::{Embedding, Generation};
        let auto = |name, purpose| settled(TaskChoice::Auto, name, purpose);
        assert_eq!(auto("Qwen/Qwen3-0.6B", Generation), (Settled::Generate, Generation));
        let embed = Settled::Embed { shortens: true };
        assert_eq!(auto("Qwen/Qwen3-Embedding-0.6B", Embedding), (embed, Embedding));
        assert_eq!(auto("Qwen/Qwen3-Reranker-0.6B", Generation), (Settled::Rerank, Generation));
    }

    #[test]
    fn the_operator_knows_better() {
        use Purpose::{Embedding, Generation};
        let embed = settled(TaskChoice::Embed, "Qwen/Qwen3-0.6B", Generation);
        assert_eq!(embed, (Settled::Embed { shortens: false }, Embedding));
        let generate = settled(TaskChoice::Generate, "m", Embedding);
        assert_eq!(generate, (Settled::Generate, Generation));
        let rerank = settled(TaskChoice::Rerank, "m", Generation);
        assert_eq!(rerank, (Settled::Rerank, Generation));
    }
}
