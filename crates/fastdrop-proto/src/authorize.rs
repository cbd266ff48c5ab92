//! Tokens: what a client says of itself at the beginning, and what a server says to that.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;

/// Bytes of the longest token.
pub const TOKEN_MAX: usize = 255;

/// The words that a client has said of itself when it asks to be let in.
#[derive(Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Credentials<'a> {
    /// Its token.
    pub token: Option<&'a str>,
    /// The name that it gives itself, which proves nothing.
    pub name: Option<&'a str>,
}

impl<'a> Credentials<'a> {
    /// Puts them together.
    pub fn new(token: Option<&'a str>, name: Option<&'a str>) -> Self {
        Self { token, name }
    }
}

impl fmt::Debug for Credentials<'_> {
    /// Never the token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let has_token = self.token.is_some();
        f.debug_struct("Credentials").field("has_token", &has_token).field("name", &self.name).finish()
    }
}

/// The decision of a server about who is let in: Ok, or a refusal in words that the client is told.
/// It is asked while a handshake is answered, and should not block.
#[derive(Clone)]
pub struct Authorize(Arc<Decide>);

type Decide = dyn Fn(&Credentials<'_>) -> Result<(), String> + Send + Sync;

impl Authorize {
    /// Bytes of a refusal that the client is told; the rest is cut.
    const WORDS_MAX: usize = 200;

    /// Decides with this function. A token is to be compared in constant time.
    pub fn new(decide: impl Fn(&Credentials<'_>) -> Result<(), String> + Send + Sync + 'static) -> Self {
        Self(Arc::new(decide))
    }

    /// Asks for the decision.
    ///
    /// # Errors
    ///
    /// The refusal, in words.
    pub fn decide(&self, credentials: &Credentials<'_>) -> Result<(), String> {
        self.0(credentials).map_err(|mut words| {
            words.truncate(words.floor_char_boundary(Self::WORDS_MAX));
            words
        })
    }
}

impl fmt::Debug for Authorize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Authorize")
    }
}

/// A token that a client shows; it is not written where values are debugged.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Token(String);

/// A token that cannot be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a token has from 1 to {TOKEN_MAX} bytes")]
pub struct TokenError;

impl Token {
    /// Takes a token.
    ///
    /// # Errors
    ///
    /// One that is empty, or has more than [`TOKEN_MAX`] bytes.
    pub fn new(token: impl Into<String>) -> Result<Self, TokenError> {
        let token = token.into();
        if (1..=TOKEN_MAX).contains(&token.len()) { Ok(Self(token)) } else { Err(TokenError) }
    }

    /// Reports whether it is of a length that tokens have, which one that came need not be.
    pub(crate) fn fits(&self) -> bool {
        self.0.len() <= TOKEN_MAX
    }

    /// The token itself.
    pub fn secret(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}
