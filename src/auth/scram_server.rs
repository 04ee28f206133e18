//! SCRAM with us as the server: a client proves that it knows a password.
//!
//! ```text
//! client-first  -> ClientFirst::parse     (the verifier may have to be derived here)
//!               -> Exchange::begin        -> server-first
//! client-final  -> Exchange::finish       -> server-final and the ClientKey, or the defect for the log
//! ```
//! No authorization identity; the user name inside the messages is ignored, the startup message counts. Channel binding is
//! by the hash of our certificate (RFC 5929); a client that could have used it and did not know of it is refused, for then
//! somebody took it from our offer.

use std::sync::Arc;

use super::scram::{
    Attributes, BOUND_HEADER, Defect, Key, NONCE_BYTES, ScramKeys, Verifier, check_message, decode, encode, hmac,
    is_printable, malformed, same_key, sha256, show, xor,
};

/// The logged reason for a proof that does not fit.
pub const WRONG_PASSWORD: &str = "password authentication failed";

/// The channel binding that a client was offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offer<'a> {
    /// None: there is nothing to bind to.
    Nothing,
    /// The client chose the mechanism without.
    Declined,
    /// The client chose the mechanism with it: what it has to bind to.
    Chosen(&'a [u8]),
}

/// A client-first message that was understood.
pub struct ClientFirst {
    /// What the last message has to repeat: the header of the first one and the binding, in base64.
    binding: Box<str>,
    bare: Box<[u8]>,
    nonce_at: usize,
    nonce_len: usize,
}

impl ClientFirst {
    /// # Errors
    /// The defect, in the words of the log.
    pub fn parse(message: &[u8], offer: Offer<'_>) -> Result<Self, Defect> {
        check_message(message)?;
        let (binding, rest) = binding(message, offer)?;
        let bare = match rest {
            [b',', b',', bare @ ..] => bare,
            [b',', b'a', ..] => return Err("client uses authorization identity, but it is not supported".into()),
            [b',', other, ..] => {
                let other = show(*other);
                return Err(malformed(format_args!("unexpected attribute \"{other}\" in client-first-message")));
            }
            [b','] => return Err(malformed("unexpected attribute \"0x00\" in client-first-message")),
            [other, ..] => {
                return Err(malformed(format_args!("comma expected, but found character \"{}\"", show(*other))));
            }
            [] => return Err(malformed("comma expected, but found character \"0x00\"")),
        };
        if bare.first() == Some(&b'm') {
            return Err("client requires an unsupported SCRAM extension".into());
        }
        let mut attributes = Attributes::new(bare);
        let user = attributes.expect(b'n')?;
        // an empty one is the client's own affair: ours, behind it, makes every exchange another
        let nonce = attributes.expect(b'r')?;
        if !is_printable(nonce) {
            return Err("non-printable characters in SCRAM nonce".into());
        }
        while !attributes.at_end() {
            attributes.any()?;
        }
        let nonce_at = "n=".len() + user.len() + ",r=".len();
        Ok(Self { binding: binding.into(), bare: bare.into(), nonce_at, nonce_len: nonce.len() })
    }

    fn nonce(&self) -> &[u8] {
        &self.bare[self.nonce_at..self.nonce_at + self.nonce_len]
    }
}

/// Takes the flag off a client-first message. With it comes what the last message has to say of channel binding.
fn binding<'a>(message: &'a [u8], offer: Offer<'_>) -> Result<(String, &'a [u8]), Defect> {
    let (flag, rest) = message.split_first().ok_or_else(|| malformed("empty message"))?;
    match (flag, offer) {
        (b'n', Offer::Nothing | Offer::Declined) => Ok((encode(b"n,,"), rest)),
        (b'y', Offer::Nothing) => Ok((encode(b"y,,"), rest)),
        (b'y', Offer::Declined) => Err("SCRAM channel binding negotiation error: the client supports it and was not \
                                        told that it is supported here"
            .into()),
        (b'n' | b'y', Offer::Chosen(_)) => {
            Err(malformed("the mechanism with channel binding was chosen, but the message does not bind"))
        }
        (b'p', Offer::Chosen(data)) => match rest.strip_prefix(b"=tls-server-end-point") {
            Some(rest) => Ok((encode(&[BOUND_HEADER.as_bytes(), data].concat()), rest)),
            None => Err("unsupported SCRAM channel-binding type".into()),
        },
        (b'p', Offer::Declined) => {
            Err(malformed("the mechanism without channel binding was chosen, but the message binds"))
        }
        (b'p', Offer::Nothing) => Err("client requires SCRAM channel binding, but it is not supported".into()),
        (flag, _) => Err(malformed(format_args!("unexpected channel-binding flag \"{}\"", show(*flag)))),
    }
}

/// An exchange whose challenge has been sent.
pub struct Exchange {
    first: ClientFirst,
    verifier: Arc<Verifier>,
    server_first: Box<[u8]>,
    /// Length of the whole nonce, which stands behind `r=` in `server_first`.
    nonce_len: usize,
}

/// A proof that fits.
pub struct Proven {
    pub server_final: String,
    pub keys: ScramKeys,
}

impl Exchange {
    /// Answers a client-first message; [`Exchange::challenge`] is the text to send.
    #[must_use]
    pub fn begin(first: ClientFirst, verifier: Arc<Verifier>, random: &[u8; NONCE_BYTES]) -> Self {
        let mut server_first = b"r=".to_vec();
        server_first.extend_from_slice(first.nonce());
        server_first.extend_from_slice(encode(random).as_bytes());
        let nonce_len = server_first.len() - 2;
        let rest = format!(",s={},i={}", encode(&verifier.salt), verifier.iterations);
        server_first.extend_from_slice(rest.as_bytes());
        Self { first, verifier, server_first: server_first.into(), nonce_len }
    }

    /// The server-first message.
    #[must_use]
    pub fn challenge(&self) -> &[u8] {
        &self.server_first
    }

    /// Whether the verifier was made from a plain password (or for a stranger).
    #[must_use]
    pub fn is_derived(&self) -> bool {
        self.verifier.derived
    }

    /// Checks a client-final message.
    ///
    /// # Errors
    /// The defect, in the words of the log.
    pub fn finish(&self, message: &[u8]) -> Result<Proven, Defect> {
        check_message(message)?;
        let mut attributes = Attributes::new(message);
        if attributes.expect(b'c')? != self.first.binding.as_bytes() {
            return Err("unexpected SCRAM channel-binding attribute in client-final-message".into());
        }
        let nonce = attributes.expect(b'r')?;
        let (proof, signed_len) = loop {
            let left = attributes.left();
            if let (b'p', proof) = attributes.any()? {
                break (proof, message.len().saturating_sub(left + ",".len()));
            }
        };
        let proof: Key = decode(proof)
            .and_then(|proof| proof.try_into().ok())
            .ok_or_else(|| malformed("malformed proof in client-final-message"))?;
        if !attributes.at_end() {
            return Err(malformed("garbage at the end of client-final-message"));
        }
        if nonce != &self.server_first[2..2 + self.nonce_len] {
            return Err("invalid SCRAM response (nonce does not match)".into());
        }
        self.verify(&message[..signed_len], &proof)
    }

    fn verify(&self, without_proof: &[u8], proof: &Key) -> Result<Proven, Defect> {
        let auth_message: [&[u8]; 5] = [&self.first.bare, b",", &self.server_first, b",", without_proof];
        let client_key = xor(proof, &hmac(&self.verifier.stored_key, &auth_message));
        if !same_key(&sha256(&client_key), &self.verifier.stored_key) {
            return Err(WRONG_PASSWORD.into());
        }
        let signature = hmac(&self.verifier.server_key, &auth_message);
        let keys = ScramKeys { client_key, server_key: self.verifier.server_key };
        Ok(Proven { server_final: format!("v={}", encode(&signature)), keys })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::{ClientFirst, Exchange, Offer};
    use crate::auth::decoy::Decoy;
    use crate::auth::scram::{Verifier, decode, derive};

    #[test]
    fn the_example_of_rfc_7677() {
        let salt = decode(b"W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
        let verifier = Verifier::derived(&derive(b"pencil", &salt, 4096), salt, 4096);
        let first = ClientFirst::parse(b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO", Offer::Nothing).unwrap();
        assert_eq!(first.nonce(), b"rOprNGfwEbeRWgbNEkqO");
        // the example's server nonce is not base64, so its message is put in place by hand
        let server_first = b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
        let exchange = Exchange {
            first,
            verifier: Arc::new(verifier),
            server_first: server_first.as_slice().into(),
            nonce_len: 50,
        };
        let response = b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
                         p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";
        let proven = exchange.finish(response).ok().unwrap();
        assert_eq!(proven.server_final, "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");
    }

    #[test]
    fn first_messages() {
        for (message, defect) in [
            ("n,,n=,r=abc", ""),
            ("y,,n=x,r=abc,x=ext,y=", ""),
            ("p=tls-server-end-point,,n=,r=abc", "client requires SCRAM channel binding, but it is not supported"),
            ("n,a=root,n=,r=abc", "client uses authorization identity, but it is not supported"),
            ("n,,m=ext,n=,r=abc", "client requires an unsupported SCRAM extension"),
            ("n,,n=,r=a\u{7f}c", "non-printable characters in SCRAM nonce"),
            ("n,,n=,r=", ""),
            ("n,,n=,r=,x=1", ""),
            ("", "malformed SCRAM message (empty message)"),
            ("x,,n=,r=abc", "malformed SCRAM message (unexpected channel-binding flag \"'x'\")"),
            ("n", "malformed SCRAM message (comma expected, but found character \"0x00\")"),
            ("n,", "malformed SCRAM message (unexpected attribute \"0x00\" in client-first-message)"),
            ("nn", "malformed SCRAM message (comma expected, but found character \"'n'\")"),
            ("n,b", "malformed SCRAM message (unexpected attribute \"'b'\" in client-first-message)"),
            ("n,,r=abc", "malformed SCRAM message (attribute \"n\" expected)"),
            ("n,,n=,", "malformed SCRAM message (attribute \"r\" expected)"),
            ("n,,n=,r=abc,", ""),
            ("n,,n=,r=abc,,", "malformed SCRAM message (attribute expected, but found invalid character \"','\")"),
            ("n,,n=,r=abc,x", "malformed SCRAM message (expected character \"=\" after attribute \"x\")"),
        ] {
            let result = ClientFirst::parse(message.as_bytes(), Offer::Nothing).err().unwrap_or_default();
            assert_eq!(result, defect, "{message}");
        }
    }

    #[test]
    fn final_messages() {
        let verifier = Arc::new(Verifier::mock("nobody", &Decoy::of([].into_iter(), 4096, [0; 32])));
        let begin = |first: &[u8]| {
            Exchange::begin(ClientFirst::parse(first, Offer::Nothing).unwrap(), verifier.clone(), &[0; 18])
        };
        let nonce = format!("abc{}", "A".repeat(24));
        let proof = "A".repeat(43) + "=";
        for (message, defect) in [
            (format!("c=biws,r={nonce},p={proof}"), "password authentication failed"),
            (format!("c=biws,r={nonce},x=1,p={proof}"), "password authentication failed"),
            (format!("c=biws,r={nonce},p={proof},"), "password authentication failed"),
            (format!("c=biws,r={nonce}x,p={proof}"), "invalid SCRAM response (nonce does not match)"),
            (format!("c=biws,r=abc,p={proof}"), "invalid SCRAM response (nonce does not match)"),
            (
                format!("c=eSws,r={nonce},p={proof}"),
                "unexpected SCRAM channel-binding attribute in client-final-message",
            ),
            (
                format!("c=biws,r={nonce},p={proof},x=1"),
                "malformed SCRAM message (garbage at the end of client-final-message)",
            ),
            (format!("c=biws,r={nonce},p=AAAA"), "malformed SCRAM message (malformed proof in client-final-message)"),
            (
                format!("c=biws,r={nonce}"),
                "malformed SCRAM message (attribute expected, but found invalid character \"0x00\")",
            ),
            (format!("r={nonce}"), "malformed SCRAM message (attribute \"c\" expected)"),
        ] {
            let result = begin(b"n,,n=,r=abc").finish(message.as_bytes()).err().unwrap_or_default();
            assert_eq!(result, defect, "{message}");
        }
        let said_y = begin(b"y,,n=,r=abc").finish(format!("c=eSws,r={nonce},p={proof}").as_bytes());
        assert_eq!(said_y.err().unwrap_or_default(), "password authentication failed");
    }

    #[test]
    fn channel_binding() {
        let (bound, declined) = (Offer::Chosen(b"hash"), Offer::Declined);
        for (message, offer, defect) in [
            ("p=tls-server-end-point,,n=,r=abc", bound, ""),
            ("n,,n=,r=abc", declined, ""),
            ("n,,n=,r=abc", Offer::Nothing, ""),
            ("y,,n=,r=abc", Offer::Nothing, ""),
            (
                "y,,n=,r=abc",
                declined,
                "SCRAM channel binding negotiation error: the client supports it and was not told that it is supported here",
            ),
            (
                "n,,n=,r=abc",
                bound,
                "malformed SCRAM message (the mechanism with channel binding was chosen, but the message does not bind)",
            ),
            (
                "p=tls-server-end-point,,n=,r=abc",
                declined,
                "malformed SCRAM message (the mechanism without channel binding was chosen, but the message binds)",
            ),
            ("p=tls-unique,,n=,r=abc", bound, "unsupported SCRAM channel-binding type"),
            ("p,,n=,r=abc", bound, "unsupported SCRAM channel-binding type"),
            (
                "p=tls-server-end-pointer,,n=,r=abc",
                bound,
                "malformed SCRAM message (comma expected, but found character \"'e'\")",
            ),
            (
                "p=tls-server-end-point,a=x,n=,r=abc",
                bound,
                "client uses authorization identity, but it is not supported",
            ),
            ("x,,n=,r=abc", bound, "malformed SCRAM message (unexpected channel-binding flag \"'x'\")"),
        ] {
            let result = ClientFirst::parse(message.as_bytes(), offer).err().unwrap_or_default();
            assert_eq!(result, defect, "{message}");
        }
    }

    #[test]
    fn the_bound_header_and_data_are_repeated() {
        let verifier = Arc::new(Verifier::mock("nobody", &Decoy::of([].into_iter(), 4096, [0; 32])));
        let first = |data| ClientFirst::parse(b"p=tls-server-end-point,,n=,r=abc", Offer::Chosen(data)).unwrap();
        let nonce = format!("abc{}", "A".repeat(24));
        let said = |bound: &[u8]| {
            let bound = crate::auth::scram::encode(&[b"p=tls-server-end-point,,", bound].concat());
            format!("c={bound},r={nonce},p={}=", "A".repeat(43))
        };
        for (ours, theirs, defect) in [
            (b"hash", b"hash", "password authentication failed"),
            (b"hash", b"hush", "unexpected SCRAM channel-binding attribute in client-final-message"),
        ] {
            let result = Exchange::begin(first(ours), verifier.clone(), &[0; 18]).finish(said(theirs).as_bytes());
            assert_eq!(result.err().unwrap_or_default(), defect);
        }
    }
}
