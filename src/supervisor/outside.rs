//! Passwords that somebody else judges: PAM. Directories are in `ldap.rs`.
//!
//! PAM has a thread of its own, started when it is first asked: modules may take their time, and not all of them are
//! written to be used by several threads.

use std::sync::Arc;
use std::sync::mpsc;

use zeroize::Zeroizing;

use crate::id::ClientRef;
use crate::shared::{Message, Shared};
use crate::sys::pam::Pam;

/// The name of our stack of modules.
const PAM_SERVICE: &str = "pgbouncer";

/// Is this the user's password?
pub(super) struct Question {
    pub(super) client: ClientRef,
    pub(super) user: String,
    pub(super) password: Zeroizing<Vec<u8>>,
    /// The client's address.
    pub(super) from: String,
}

/// See the module's head.
#[derive(Default)]
pub(super) struct PamThread(Option<mpsc::Sender<Question>>);

impl PamThread {
    /// Answers with a message to the client's worker.
    pub(super) fn ask(&mut self, shared: &Arc<Shared>, question: Question) {
        let question = match &self.0 {
            Some(thread) => match thread.send(question) {
                Ok(()) => return,
                Err(unsent) => unsent.0,
            },
            None => question,
        };
        let client = question.client;
        match start(shared.clone()) {
            Ok(thread) => {
                let _ = thread.send(question);
                self.0 = Some(thread);
            }
            Err(error) => {
                tracing::error!("cannot ask PAM: {error}");
                answer(shared, client, false);
            }
        }
    }
}

pub(super) fn answer(shared: &Shared, client: ClientRef, accepted: bool) {
    shared.post(client.worker).send(Message::Judged { client, accepted });
}

fn start(shared: Arc<Shared>) -> Result<mpsc::Sender<Question>, String> {
    let pam = Pam::load()?;
    let (sender, questions) = mpsc::channel::<Question>();
    let work = move || {
        for question in questions {
            let check = || pam.check(PAM_SERVICE, &question.user, &question.password, &question.from);
            let checked = shared.guard.run("a question to PAM", check);
            if let Some(Err(error)) = &checked {
                tracing::warn!("{error}");
            }
            answer(&shared, question.client, matches!(checked, Some(Ok(_))));
        }
    };
    std::thread::Builder::new().name("pam".to_owned()).spawn(work).map_err(|error| error.to_string())?;
    Ok(sender)
}
