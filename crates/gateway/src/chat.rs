//! How a conversation becomes a prompt.
//!
//! These models have seen no conversations, only documents; so a chat is written as a document would write it:
//!
//! ```text
//! System: Answer briefly.
//! User: Who are you?
//! Assistant:
//! ```
//!
//! and the answer is the model's continuation of that text, up to the point where it would begin another turn.
//! `developer` counts as `system`. Nothing is escaped: a message that spells a turn marker can pretend to be another
//! turn, which is harmless here, because no role has rights that another lacks.

/// Who speaks in a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    System,
    User,
    Assistant,
}

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) role: Role,
    pub(crate) text: String,
}

impl Role {
    const ALL: [Self; 3] = [Self::System, Self::User, Self::Assistant];

    /// The role of this name in the API.
    pub(crate) fn from_name(name: &str) -> Option<Self> {
        match name {
            "system" | "developer" => Some(Self::System),
            "user" => Some(Self::User),
            "assistant" => Some(Self::Assistant),
            _ => None,
        }
    }

    /// What begins a turn of this role.
    fn marker(self) -> &'static str {
        match self {
            Self::System => "System:",
            Self::User => "User:",
            Self::Assistant => "Assistant:",
        }
    }
}

/// The text that the model continues.
pub(crate) fn prompt(messages: &[Message]) -> String {
    let mut text = String::new();
    for message in messages {
        text.push_str(message.role.marker());
        text.push(' ');
        text.push_str(message.text.trim());
        text.push('\n');
    }
    text.push_str(Role::Assistant.marker());
    text
}

/// What ends an answer: the beginning of another turn.
pub(crate) fn stops() -> impl Iterator<Item = String> {
    Role::ALL
        .into_iter()
        .map(|role| format!("\n{}", role.marker()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_conversation_is_written_as_a_document() {
        let message = |role, text: &str| Message {
            role,
            text: text.to_owned(),
        };
        let messages = [
            message(Role::System, "Answer briefly."),
            message(Role::User, " Who are you?\n"),
            message(Role::Assistant, "A model."),
            message(Role::User, "Of what?"),
        ];
        assert_eq!(
            prompt(&messages),
            "System: Answer briefly.\nUser: Who are you?\nAssistant: A model.\nUser: Of what?\nAssistant:"
        );
    }
}
