//! A set of tokens that lets clients in.

pub use fastdrop_proto::authorize::{Authorize, Credentials, TOKEN_MAX, Token, TokenError};
use sha2::{Digest, Sha256};
use std::fmt;
use subtle::{Choice, ConstantTimeEq};

/// Tokens that let clients in, kept as SHA-256 and compared in constant time.
///
/// ```
/// use fastdrop_messages::{Authorize, TokenSet};
/// use fastdrop_messages::cnp::Server;
///
/// let tokens = TokenSet::new(["correct horse battery staple"]);
/// let server = Server::builder().authorize(tokens);
/// ```
#[derive(Clone, Default)]
pub struct TokenSet(Vec<[u8; 32]>);

impl TokenSet {
    /// Lets in clients with one of these tokens.
    pub fn new<T: AsRef<str>>(tokens: impl IntoIterator<Item = T>) -> Self {
        Self::from_digests(tokens.into_iter().map(|token| digest(token.as_ref())))
    }

    /// Lets in clients with a token that has one of these SHA-256.
    pub fn from_digests(digests: impl IntoIterator<Item = [u8; 32]>) -> Self {
        Self(digests.into_iter().collect())
    }

    /// Decides about a client.
    ///
    /// # Errors
    ///
    /// A refusal, in words that tell nothing of the tokens that there are.
    pub fn check(&self, credentials: &Credentials<'_>) -> Result<(), String> {
        let Some(token) = credentials.token else {
            return Err("a token is needed here, and none was shown".into());
        };
        let shown = digest(token);
        let known = self.0.iter().fold(Choice::from(0), |known, one| known | one.ct_eq(&shown));
        if known.into() { Ok(()) } else { Err("this token is not known here".into()) }
    }
}

impl From<TokenSet> for Authorize {
    fn from(tokens: TokenSet) -> Self {
        Self::new(move |credentials| tokens.check(credentials))
    }
}

impl fmt::Debug for TokenSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TokenSet of {}", self.0.len())
    }
}

fn digest(token: &str) -> [u8; 32] {
    Sha256::digest(token).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_of_the_set_is_let_in_and_nothing_else_is() {
        let tokens = TokenSet::new(["one", "two"]);
        let check = |token| tokens.check(&Credentials::new(token, Some("one")));
        assert_eq!((check(Some("one")), check(Some("two"))), (Ok(()), Ok(())));
        for wrong in [None, Some(""), Some("on"), Some("one "), Some("three")] {
            assert!(check(wrong).is_err());
        }
        assert!(TokenSet::default().check(&Credentials::new(Some("one"), None)).is_err());
        let credentials = Credentials::new(Some("s3cret"), None);
        let shown = format!("{:?} {credentials:?} {:?}", TokenSet::new(["s3cret"]), Token::new("s3cret"));
        assert!(!shown.contains("s3cret"), "{shown}");
        assert_eq!((Token::new(""), Token::new("x".repeat(256))), (Err(TokenError), Err(TokenError)));
    }
}
