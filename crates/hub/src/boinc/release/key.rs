//! BOINC's code signing: its text of keys and signatures, and RSA over the hexadecimal MD5 of a file.
//!
//! A key is `1024`, then modulus and exponent as 128 bytes each; a signature is 128 bytes. Both are written in hexadecimal,
//! 32 bytes to a line, and end with a line that is a dot. The padding is PKCS#1's of type 1, without the usual name of the
//! hash function.

use anyhow::{Context, Result, anyhow, bail};
use data_encoding::HEXLOWER;
use md5::{Digest, Md5};
use rsa::{
    BigUint, Pkcs1v15Sign, RsaPrivateKey, RsaPublicKey,
    pkcs8::{DecodePrivateKey, EncodePrivateKey, LineEnding},
    rand_core::OsRng,
    traits::PublicKeyParts,
};

/// BOINC's clients know keys of this length alone.
const BITS: usize = 1024;
const BYTES: usize = BITS / 8;
/// Bytes in a line of hexadecimal digits.
const LINE_BYTES: usize = 32;

/// The secret that signs what BOINC clients run.
pub struct SigningKey(RsaPrivateKey);

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("SigningKey(secret)")
    }
}

impl SigningKey {
    /// Draws a key from the system's entropy.
    ///
    /// # Errors
    /// There is no entropy.
    pub fn generate() -> Result<Self> {
        let key = RsaPrivateKey::new(&mut OsRng, BITS).context("drawing an RSA key")?;
        Ok(Self(key))
    }

    /// Reads what [`Self::to_pem`] wrote.
    ///
    /// # Errors
    /// Not a key, or one of another length than BOINC's clients take.
    pub fn from_pem(text: &str) -> Result<Self> {
        let key = RsaPrivateKey::from_pkcs8_pem(text)
            .map_err(|error| anyhow!("no RSA key in PKCS#8 PEM: {error}"))?;
        if key.n().bits() != BITS {
            bail!(
                "the key has {} bits; BOINC's clients take {BITS}",
                key.n().bits()
            );
        }
        key.validate().context("the key's numbers")?;
        Ok(Self(key))
    }

    /// The secret part as PKCS#8 PEM.
    ///
    /// # Panics
    /// Never: every key has this form.
    #[must_use]
    pub fn to_pem(&self) -> String {
        let pem = self.0.to_pkcs8_pem(LineEnding::LF);
        pem.expect("every key has this form").to_string()
    }

    /// The public part as BOINC writes it.
    #[must_use]
    pub fn public_text(&self) -> String {
        let mut bytes = left_padded(self.0.n());
        bytes.extend(left_padded(self.0.e()));
        format!("{BITS}\n{}", text(&bytes))
    }

    /// Signs the public part of the key that comes after this one: clients compare the text without what surrounds it.
    pub(super) fn sign_key(&self, next: &Self) -> Result<String> {
        self.sign(&md5_of(next.public_text().trim()))
    }

    /// Signs the MD5 of a file, given in hexadecimal.
    pub(super) fn sign(&self, md5: &str) -> Result<String> {
        let signature = self.0.sign(Pkcs1v15Sign::new_unprefixed(), md5.as_bytes());
        Ok(text(&signature.context("signing")?))
    }
}

/// Whether a signature is of this MD5 by this key.
///
/// # Errors
/// It is not.
pub(super) fn verify(key: &str, md5: &str, signature: &str) -> Result<()> {
    let key = read_public(key)?;
    let signature = bytes(signature, BYTES).context("the signature")?;
    key.verify(Pkcs1v15Sign::new_unprefixed(), md5.as_bytes(), &signature)
        .context("its signature is not of this file by this key")
}

/// Whether a text has the form of a signature.
///
/// # Errors
/// It has not.
pub(super) fn check_form(signature: &str) -> Result<()> {
    bytes(signature, BYTES).map(drop)
}

fn md5_of(text: &str) -> String {
    HEXLOWER.encode(&Md5::digest(text.as_bytes()))
}

/// Reads a public key as BOINC writes it.
///
/// # Errors
/// Not one.
pub(super) fn read_public(text: &str) -> Result<RsaPublicKey> {
    let digits = text
        .trim_start()
        .strip_prefix("1024\n")
        .context("the code signing key does not begin with 1024")?;
    let bytes = bytes(digits, 2 * BYTES).context("the code signing key")?;
    let (modulus, exponent) = bytes.split_at(BYTES);
    let number = |it: &[u8]| BigUint::from_bytes_be(it);
    let key = RsaPublicKey::new(number(modulus), number(exponent));
    let key = key.context("the code signing key")?;
    if key.n().bits() != BITS {
        bail!("the code signing key has {} bits", key.n().bits());
    }
    Ok(key)
}

fn left_padded(number: &BigUint) -> Vec<u8> {
    let digits = number.to_bytes_be();
    let mut bytes = vec![0; BYTES - digits.len()];
    bytes.extend(digits);
    bytes
}

fn text(bytes: &[u8]) -> String {
    let lines = bytes.chunks(LINE_BYTES).map(|it| HEXLOWER.encode(it));
    lines.map(|it| it + "\n").collect::<String>() + ".\n"
}

/// Reads [`text`]; line ends and spaces may differ, as XML's readers and writers change them.
fn bytes(text: &str, length: usize) -> Result<Vec<u8>> {
    let digits: String = text.split_ascii_whitespace().collect();
    let digits = digits
        .strip_suffix('.')
        .context("it does not end with a dot")?;
    let bytes = HEXLOWER
        .decode(digits.as_bytes())
        .context("it is not written in hexadecimal")?;
    if bytes.len() != length {
        bail!("it has {} bytes instead of {length}", bytes.len());
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From an exchange with a stock client, which accepted it.
    const KEY: &str = "1024
c19ca162f0876774bf277c5920435aea5e3f6259ab5f123fcad16bcc32a8d885
8a8e9037ac7b7efbdb8e8d9bfc7d48065616a5638a3be8fe70bb87c6559b6cb9
a5085d6d1abb5a69a00247a3564fd1e7013293fe05f554a0bb6b8ae8ded108ed
467cccf747df89338d86aac57e244d24806a811af9ee3c0f29660067793d0e35
0000000000000000000000000000000000000000000000000000000000000000
0000000000000000000000000000000000000000000000000000000000000000
0000000000000000000000000000000000000000000000000000000000000000
0000000000000000000000000000000000000000000000000000000000010001
.
";
    const SIGNATURE: &str = "ba2ee8e516d464f35ace2a03643b2f649aeb1131c06649b53b527df1df8ad718
b8d8b723d3d5b7f8f347d2ec15cf9fed7bf7c4088695a54b6fa622e7a586040a
def0509c4e36ce2724ab8655ce29a7984739be69fbfd1494871e5ca3207779eb
00e7eb52f33421b8ea41ce11e9acd8f08c01de8cbfeb20a793055a2861c4813d
.
";
    const MD5: &str = "f840e9088a80ae49383dcf2f2e15a862";

    #[test]
    fn what_a_stock_client_accepted_verifies() {
        verify(KEY, MD5, SIGNATURE).unwrap();
        let other = MD5.replace('f', "e");
        assert!(verify(KEY, &other, SIGNATURE).is_err());
        for digit in [0, 70, 250] {
            let mut damaged = SIGNATURE.as_bytes().to_vec();
            damaged[digit] = if damaged[digit] == b'0' { b'1' } else { b'0' };
            let damaged = String::from_utf8(damaged).unwrap();
            assert!(verify(KEY, MD5, &damaged).is_err(), "digit {digit}");
        }
    }

    #[test]
    fn keys_and_signatures_are_written_as_boinc_writes_them() {
        let digits = bytes(KEY.strip_prefix("1024\n").unwrap(), 2 * BYTES).unwrap();
        assert_eq!(format!("{BITS}\n{}", text(&digits)), KEY);
        assert_eq!(text(&bytes(SIGNATURE, BYTES).unwrap()), SIGNATURE);
        let public = read_public(KEY).unwrap();
        assert_eq!(public.e(), &BigUint::from(65_537_u32));
        let mut padded = left_padded(public.n());
        padded.extend(left_padded(public.e()));
        assert_eq!(padded, digits);
    }

    #[test]
    fn a_drawn_key_signs_comes_back_from_its_text_and_is_not_printed() {
        let key = SigningKey::generate().unwrap();
        let again = SigningKey::from_pem(&key.to_pem()).unwrap();
        assert_eq!(again.public_text(), key.public_text());
        let signature = again.sign(MD5).unwrap();
        verify(&key.public_text(), MD5, &signature).unwrap();
        assert!(verify(KEY, MD5, &signature).is_err());
        let next = SigningKey::generate().unwrap();
        let signature = key.sign_key(&next).unwrap();
        check_form(&signature).unwrap();
        let text = md5_of(next.public_text().trim_end());
        verify(&key.public_text(), &text, &signature).unwrap();
        assert_eq!(format!("{key:?}"), "SigningKey(secret)");
        assert!(SigningKey::from_pem("-----BEGIN PRIVATE KEY-----").is_err());
    }

    #[test]
    fn what_is_no_key_is_refused() {
        let zero = KEY.replace("10001", "00000");
        let short = KEY.replacen("c19ca162", "", 1);
        let small = KEY.replacen("c1", "01", 1);
        for text in ["", "1024\n", "2048\n00\n.\n", &zero, &short, &small] {
            assert!(read_public(text).is_err(), "{text}");
        }
    }
}
