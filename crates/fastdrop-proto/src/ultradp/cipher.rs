//! The cipher of the secured variant: AES-256 in CFB mode with segments of 128 bits, under a key
//! from a password. It keeps bytes secret and authenticates none of them.

use aes::Aes256;
use aes::cipher::KeyIvInit;
use cfb_mode::{BufDecryptor, BufEncryptor};
use sha2::Sha256;
use std::fmt;

/// Rounds of PBKDF2 with HMAC-SHA-256.
const ROUNDS: u32 = 100_000;
const KEY_LEN: usize = 32;
/// Bytes of the salt, and of the initialisation vector.
pub const SALT_LEN: usize = 16;

/// The bytes that follow the announcement of the secured variant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prelude {
    /// Salt of the password.
    pub salt: [u8; SALT_LEN],
    /// Initialisation vector.
    pub iv: [u8; SALT_LEN],
}

impl Prelude {
    /// Its bytes on the wire.
    pub const LEN: usize = 2 * SALT_LEN;

    /// Reads it.
    pub fn decode(bytes: [u8; Self::LEN]) -> Self {
        let (mut salt, mut iv) = ([0; SALT_LEN], [0; SALT_LEN]);
        for (to, from) in salt.iter_mut().chain(&mut iv).zip(bytes) {
            *to = from;
        }
        Self { salt, iv }
    }

    /// Writes it.
    pub fn encode(&self) -> Vec<u8> {
        [self.salt, self.iv].concat()
    }
}

/// A key that was derived from a password. It is not shown.
pub struct Key([u8; KEY_LEN]);

impl Key {
    /// Derives the key of a connection. That takes some 50 ms of a core, on purpose: a password
    /// costs so much to be tried.
    pub fn derive(password: &[u8], salt: &[u8; SALT_LEN]) -> Self {
        Self(pbkdf2::pbkdf2_hmac_array::<Sha256, KEY_LEN>(password, salt, ROUNDS))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key")
    }
}

/// Encrypts the contents of all chunks of a connection, one after the other.
pub struct Encryptor(BufEncryptor<Aes256>);

impl Encryptor {
    /// Creates the state of a connection at its beginning.
    pub fn new(key: &Key, iv: &[u8; SALT_LEN]) -> Self {
        Self(BufEncryptor::new(&key.0.into(), &(*iv).into()))
    }

    /// Encrypts the next bytes in their place.
    pub fn encrypt(&mut self, bytes: &mut [u8]) {
        self.0.encrypt(bytes);
    }
}

impl fmt::Debug for Encryptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Encryptor")
    }
}

/// Decrypts the contents of all chunks of a connection, one after the other.
pub struct Decryptor(BufDecryptor<Aes256>);

impl Decryptor {
    /// Creates the state of a connection at its beginning.
    pub fn new(key: &Key, iv: &[u8; SALT_LEN]) -> Self {
        Self(BufDecryptor::new(&key.0.into(), &(*iv).into()))
    }

    /// Decrypts the next bytes in their place.
    pub fn decrypt(&mut self, bytes: &mut [u8]) {
        self.0.decrypt(bytes);
    }
}

impl fmt::Debug for Decryptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Decryptor")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key() -> Key {
        Key([7; KEY_LEN])
    }

    #[test]
    fn the_vectors_of_the_specification_are_what_the_cipher_makes() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/protocol/vectors/ultradp.txt");
        let text = std::fs::read_to_string(path).unwrap();
        let mut count = 0;
        for vector in text.lines().filter(|line| !line.starts_with('#')) {
            let fields: Vec<_> = vector.split_whitespace().collect();
            // Others are announcements.
            let [password, salt, iv, key, plain, secret] = fields[..] else { continue };
            let bytes = |text: &str| hex::decode(text).unwrap();
            let derived = Key::derive(password.as_bytes(), &bytes(salt).try_into().unwrap());
            assert_eq!(hex::encode(derived.0), key);
            let iv = bytes(iv).try_into().unwrap();
            let mut buffer = bytes(plain);
            Encryptor::new(&derived, &iv).encrypt(&mut buffer);
            assert_eq!(hex::encode(&buffer), secret);
            Decryptor::new(&derived, &iv).decrypt(&mut buffer);
            assert_eq!(hex::encode(&buffer), plain);
            count += 1;
        }
        assert!(count >= 3);
    }

    #[test]
    fn what_is_secret_is_not_shown() {
        let (key, iv) = (key(), [9; SALT_LEN]);
        let shown = format!("{key:?} {:?} {:?}", Encryptor::new(&key, &iv), Decryptor::new(&key, &iv));
        assert_eq!(shown, "Key Encryptor Decryptor");
    }

    proptest! {
        /// However a stream is cut, at either end.
        #[test]
        fn the_bytes_are_one_stream(
            plain in proptest::collection::vec(any::<u8>(), 0..200),
            cuts in proptest::collection::vec(0..40usize, 0..20),
            others in proptest::collection::vec(0..40usize, 0..20),
        ) {
            let iv = [3; SALT_LEN];
            let mut whole = plain.clone();
            Encryptor::new(&key(), &iv).encrypt(&mut whole);
            let (mut secret, mut encryptor) = (plain.clone(), Encryptor::new(&key(), &iv));
            in_parts(&mut secret, &cuts, |part| encryptor.encrypt(part));
            prop_assert_eq!(&secret, &whole);
            let mut decryptor = Decryptor::new(&key(), &iv);
            in_parts(&mut secret, &others, |part| decryptor.decrypt(part));
            prop_assert_eq!(secret, plain);
        }
    }

    fn in_parts(mut rest: &mut [u8], cuts: &[usize], mut each: impl FnMut(&mut [u8])) {
        for &cut in cuts {
            let (part, behind) = rest.split_at_mut(cut.min(rest.len()));
            each(part);
            rest = behind;
        }
        each(rest);
    }
}
