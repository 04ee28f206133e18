//! SCRAM with us as the client: we prove to a server that we know a password, and it proves the same to us.
//!
//! A server is trusted no more than a client: its nonce, salt and iteration count are bounded before they are used, and
//! its signature is demanded.

use super::scram::{
    Attributes, BOUND_HEADER, Defect, Key, MAX_ITERATIONS, NONCE_BYTES, ScramKeys, check_message, decode, encode, hmac,
    is_printable, malformed, same_key, sha256, xor,
};

/// What a server wants us to compute with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Challenge {
    pub salt: Vec<u8>,
    pub iterations: u32,
}

/// What we say about channel binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binding<'a> {
    /// We could not do it.
    Impossible,
    /// We could, but the server does not offer it.
    NotOffered,
    /// The exchange is bound to this.
    Bound(&'a [u8]),
}

impl Binding<'_> {
    const fn header(&self) -> &'static str {
        match self {
            Self::Impossible => "n,,",
            Self::NotOffered => "y,,",
            Self::Bound(_) => BOUND_HEADER,
        }
    }

    fn data(&self) -> &[u8] {
        match self {
            Self::Bound(data) => data,
            Self::Impossible | Self::NotOffered => &[],
        }
    }
}

/// Our side of an exchange.
pub struct Exchange {
    /// What the first message begins with.
    header: &'static str,
    /// The header and what it binds to, in base64, for the last message.
    binding: String,
    nonce: String,
    server_first: Box<[u8]>,
    /// The signature the server will send if it knows us.
    expected: Option<Key>,
}

impl Exchange {
    #[must_use]
    pub fn new(random: &[u8; NONCE_BYTES], binding: Binding<'_>) -> Self {
        let header = binding.header();
        let binding = encode(&[header.as_bytes(), binding.data()].concat());
        Self { header, binding, nonce: encode(random), server_first: Box::default(), expected: None }
    }

    /// The client-first message. PostgreSQL takes the user's name from the startup message, so none is given.
    #[must_use]
    pub fn first(&self) -> String {
        format!("{}n=,r={}", self.header, self.nonce)
    }

    /// Reads the server-first message.
    ///
    /// # Errors
    /// The defect, in the words of the log.
    pub fn challenged(&mut self, message: &[u8]) -> Result<Challenge, Defect> {
        check_message(message)?;
        let mut attributes = Attributes::new(message);
        let nonce = attributes.expect(b'r')?;
        if !nonce.starts_with(self.nonce.as_bytes()) || nonce.len() == self.nonce.len() || !is_printable(nonce) {
            return Err("invalid SCRAM response (nonce mismatch)".into());
        }
        let salt = decode(attributes.expect(b's')?)
            .filter(|salt| !salt.is_empty())
            .ok_or_else(|| malformed("invalid salt"))?;
        let iterations = parse_iterations(attributes.expect(b'i')?)?;
        if !attributes.at_end() {
            return Err(malformed("garbage at end of server-first-message"));
        }
        self.server_first = message.into();
        Ok(Challenge { salt, iterations })
    }

    /// The client-final message, with the keys that belong to the challenge.
    pub fn prove(&mut self, keys: &ScramKeys) -> Vec<u8> {
        let mut message = format!("c={},", self.binding).into_bytes();
        let nonce_end = self.server_first.iter().position(|&b| b == b',').unwrap_or(self.server_first.len());
        message.extend_from_slice(&self.server_first[..nonce_end]);
        let bare = format!("n=,r={}", self.nonce);
        let auth_message: [&[u8]; 5] = [bare.as_bytes(), b",", &self.server_first, b",", &message];
        let signature = hmac(&sha256(&keys.client_key), &auth_message);
        self.expected = Some(hmac(&keys.server_key, &auth_message));
        let proof = encode(&xor(&keys.client_key, &signature));
        message.extend_from_slice(b",p=");
        message.extend_from_slice(proof.as_bytes());
        message
    }

    /// Whether the server's signature is the right one.
    ///
    /// # Errors
    /// The defect, in the words of the log, if the message holds no signature.
    pub fn verify(&self, message: &[u8]) -> Result<bool, Defect> {
        check_message(message)?;
        if message.first() == Some(&b'e') {
            let error = String::from_utf8_lossy(Attributes::new(message).expect(b'e')?).into_owned();
            return Err(format!("error received from server in SCRAM exchange: {error}").into());
        }
        let mut attributes = Attributes::new(message);
        let signature: Key = decode(attributes.expect(b'v')?)
            .and_then(|signature| signature.try_into().ok())
            .ok_or_else(|| malformed("invalid server signature"))?;
        if !attributes.at_end() {
            return Err(malformed("garbage at end of server-final-message"));
        }
        Ok(self.expected.is_some_and(|expected| same_key(&expected, &signature)))
    }
}

fn parse_iterations(text: &[u8]) -> Result<u32, Defect> {
    let digits = text.iter().all(u8::is_ascii_digit);
    let number = std::str::from_utf8(text).ok().filter(|_| digits).and_then(|text| text.parse::<u64>().ok());
    match number.map(u32::try_from) {
        Some(Ok(n)) if (1..=MAX_ITERATIONS).contains(&n) => Ok(n),
        Some(Ok(0)) | None => Err(malformed("invalid iteration count")),
        _ => Err(format!("SCRAM iteration count of server is above {MAX_ITERATIONS}").into()),
    }
}

#[cfg(test)]
mod tests {
    use super::{Binding, Challenge, Exchange};
    use crate::auth::scram::{ScramKeys, decode, derive};

    fn rfc_7677() -> Exchange {
        Exchange { nonce: "rOprNGfwEbeRWgbNEkqO".into(), ..Exchange::new(&[0; 18], Binding::Impossible) }
    }

    #[test]
    fn challenges() {
        let good = "r=rOprNGfwEbeRWgbNEkqOxyz,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
        let salt = decode(b"W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
        assert_eq!(rfc_7677().challenged(good.as_bytes()), Ok(Challenge { salt, iterations: 4096 }));
        for (from, to, defect) in [
            ("xyz", "", "invalid SCRAM response (nonce mismatch)"),
            ("rOpr", "rOpR", "invalid SCRAM response (nonce mismatch)"),
            ("xyz", "x\u{1}z", "invalid SCRAM response (nonce mismatch)"),
            ("W22Z", "W2", "malformed SCRAM message (invalid salt)"),
            ("W22ZaJ0SNY7soEsUEjb6gQ==", "", "malformed SCRAM message (invalid salt)"),
            ("i=4096", "i=0", "malformed SCRAM message (invalid iteration count)"),
            ("i=4096", "i=", "malformed SCRAM message (invalid iteration count)"),
            ("i=4096", "i=-1", "malformed SCRAM message (invalid iteration count)"),
            ("i=4096", "i=+1", "malformed SCRAM message (invalid iteration count)"),
            ("i=4096", "i=1000001", "SCRAM iteration count of server is above 1000000"),
            ("i=4096", "i=4294967297", "SCRAM iteration count of server is above 1000000"),
            ("i=4096", "i=20000000", "SCRAM iteration count of server is above 1000000"),
            ("i=4096", "i=99999999999999999999999", "malformed SCRAM message (invalid iteration count)"),
            ("i=4096", "i=4096,x=1", "malformed SCRAM message (garbage at end of server-first-message)"),
            (",i=4096", "", "malformed SCRAM message (attribute \"i\" expected)"),
            (good, "", "malformed SCRAM message (empty message)"),
        ] {
            let result = rfc_7677().challenged(good.replacen(from, to, 1).as_bytes());
            assert_eq!(result.unwrap_err(), defect, "{from} -> {to}");
        }
    }

    #[test]
    fn signatures() {
        let mut exchange = rfc_7677();
        let salt = decode(b"W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
        assert_eq!(exchange.verify(b"v=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="), Ok(false));
        exchange.challenged(b"r=rOprNGfwEbeRWgbNEkqOxyz,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096").unwrap();
        exchange.prove(&ScramKeys::from(&derive(b"pencil", &salt, 4096)));
        assert_eq!(exchange.verify(b"v=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="), Ok(false));
        assert!(exchange.verify(b"v=AAAA").is_err());
        assert!(exchange.verify(b"v=").is_err());
        assert!(exchange.verify(b"").is_err());
        let reported = exchange.verify(b"e=other-error").unwrap_err();
        assert_eq!(reported, "error received from server in SCRAM exchange: other-error");
    }

    #[test]
    fn the_example_of_rfc_7677_as_client() {
        let mut exchange = rfc_7677();
        let salt = decode(b"W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
        exchange.challenged(b"r=rOprNGfwEbeRWgbNEkqOxyz,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096").unwrap();
        let message = exchange.prove(&ScramKeys::from(&derive(b"pencil", &salt, 4096)));
        assert!(message.starts_with(b"c=biws,r=rOprNGfwEbeRWgbNEkqOxyz,p="));
    }
}
