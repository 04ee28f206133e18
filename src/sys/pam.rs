//! Pluggable authentication: asks libpam whether a password is right.
//!
//! The library is loaded when it is wanted, so that the program also starts on machines without it. A call may take as
//! long as the configured modules like, and not every module can be used from several threads at once.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ptr;

use nix::libc;
use zeroize::Zeroizing;

const LIBRARY: &CStr = c"libpam.so.0";

const SUCCESS: c_int = 0;
const BUF_ERR: c_int = 5;
const CONV_ERR: c_int = 19;
/// Item of a handle: the host a request comes from.
const RHOST: c_int = 4;
const PROMPT_ECHO_OFF: c_int = 1;
const ERROR_MSG: c_int = 3;
const TEXT_INFO: c_int = 4;
/// More questions at once are not meant.
const MAX_MESSAGES: c_int = 32;

#[repr(C)]
struct Message {
    style: c_int,
    text: *const c_char,
}

#[repr(C)]
struct Response {
    text: *mut c_char,
    code: c_int,
}

type Converse = unsafe extern "C" fn(c_int, *const *const Message, *mut *mut Response, *mut c_void) -> c_int;

#[repr(C)]
struct Conversation {
    converse: Converse,
    data: *mut c_void,
}

type Start = unsafe extern "C" fn(*const c_char, *const c_char, *const Conversation, *mut *mut c_void) -> c_int;
type Step = unsafe extern "C" fn(*mut c_void, c_int) -> c_int;
type SetItem = unsafe extern "C" fn(*mut c_void, c_int, *const c_void) -> c_int;
type StrError = unsafe extern "C" fn(*mut c_void, c_int) -> *const c_char;

/// The library.
pub struct Pam {
    start: Start,
    end: Step,
    set_item: SetItem,
    authenticate: Step,
    account: Step,
    error_text: StrError,
}

impl Pam {
    /// Loads the library; it stays in the process.
    ///
    /// # Errors
    /// Why it cannot be used, for the log.
    pub fn load() -> Result<Self, String> {
        // SAFETY: a constant name; the library's constructors run, as they would had it been linked.
        let library = unsafe { libc::dlopen(LIBRARY.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        if library.is_null() {
            return Err(format!("{} cannot be loaded", LIBRARY.to_string_lossy()));
        }
        let symbol = |name: &CStr| {
            // SAFETY: the library is loaded and is never unloaded.
            let found = unsafe { libc::dlsym(library, name.as_ptr()) };
            if found.is_null() { Err(format!("{} is not in libpam", name.to_string_lossy())) } else { Ok(found) }
        };
        // SAFETY: these functions have these types, by the standard interface of libpam (security/pam_appl.h).
        unsafe {
            Ok(Self {
                start: std::mem::transmute::<*mut c_void, Start>(symbol(c"pam_start")?),
                end: std::mem::transmute::<*mut c_void, Step>(symbol(c"pam_end")?),
                set_item: std::mem::transmute::<*mut c_void, SetItem>(symbol(c"pam_set_item")?),
                authenticate: std::mem::transmute::<*mut c_void, Step>(symbol(c"pam_authenticate")?),
                account: std::mem::transmute::<*mut c_void, Step>(symbol(c"pam_acct_mgmt")?),
                error_text: std::mem::transmute::<*mut c_void, StrError>(symbol(c"pam_strerror")?),
            })
        }
    }

    /// Asks the stack of `service` whether this is the password of `user`, who comes from `remote_host`, and whether his
    /// account is good.
    ///
    /// # Errors
    /// It is not, and why, for the log.
    pub fn check(&self, service: &str, user: &str, password: &[u8], remote_host: &str) -> Result<(), String> {
        let text = |text: &str| CString::new(text).map_err(|_| "a NUL byte in a name".to_owned());
        let (service, user, remote_host) = (text(service)?, text(user)?, text(remote_host)?);
        let mut password = Zeroizing::new(password.to_vec());
        password.push(0);
        let conversation = Conversation { converse, data: password.as_mut_ptr().cast() };
        let mut handle = ptr::null_mut();
        // SAFETY: all pointers are to values that outlive the handle, which ends below.
        let started =
            unsafe { (self.start)(service.as_ptr(), user.as_ptr(), &raw const conversation, &raw mut handle) };
        if started != SUCCESS {
            return Err(self.failed("pam_start", ptr::null_mut(), started));
        }
        let checked = self.run(handle, &remote_host);
        let last = checked.as_ref().err().map_or(SUCCESS, |(_, code)| *code);
        let outcome = checked.map_err(|(step, code)| self.failed(step, handle, code));
        // SAFETY: the handle came from pam_start and is not used again.
        unsafe { (self.end)(handle, last) };
        outcome
    }

    fn run(&self, handle: *mut c_void, remote_host: &CStr) -> Result<(), (&'static str, c_int)> {
        let step = |name, code| if code == SUCCESS { Ok(()) } else { Err((name, code)) };
        // SAFETY: a live handle, and a string that libpam copies.
        step("pam_set_item", unsafe { (self.set_item)(handle, RHOST, remote_host.as_ptr().cast()) })?;
        // SAFETY: a live handle whose conversation outlives the call.
        step("pam_authenticate", unsafe { (self.authenticate)(handle, 0) })?;
        // SAFETY: as above.
        step("pam_acct_mgmt", unsafe { (self.account)(handle, 0) })
    }

    fn failed(&self, step: &str, handle: *mut c_void, code: c_int) -> String {
        // SAFETY: the handle is live or null, and the text is a constant of the library.
        let text = unsafe {
            let text = (self.error_text)(handle, code);
            if text.is_null() { String::new() } else { CStr::from_ptr(text).to_string_lossy().into_owned() }
        };
        format!("{step}() failed: {text}")
    }
}

/// Answers what modules ask: the password to every hidden prompt, nothing to what they only say.
unsafe extern "C" fn converse(
    count: c_int,
    messages: *const *const Message,
    responses: *mut *mut Response,
    password: *mut c_void,
) -> c_int {
    let Some(len) = usize::try_from(count).ok().filter(|_| (1..=MAX_MESSAGES).contains(&count)) else {
        return CONV_ERR;
    };
    // SAFETY: C's own allocator, for libpam frees what it is given.
    let answers = unsafe { libc::calloc(len, size_of::<Response>()) }.cast::<Response>();
    if answers.is_null() {
        return BUF_ERR;
    }
    for index in 0..len {
        // SAFETY: libpam passes `count` valid messages, and as many zeroed responses were allocated.
        let known = unsafe {
            match (**messages.add(index)).style {
                PROMPT_ECHO_OFF => {
                    (*answers.add(index)).text = libc::strdup(password.cast());
                    !(*answers.add(index)).text.is_null()
                }
                ERROR_MSG | TEXT_INFO => true,
                _ => false,
            }
        };
        if !known {
            // SAFETY: all texts so far came from strdup or are null.
            unsafe { discard(answers, len) };
            return CONV_ERR;
        }
    }
    // SAFETY: libpam passes a place for the result.
    unsafe { *responses = answers };
    SUCCESS
}

/// Wipes and frees responses that are not given away.
unsafe fn discard(answers: *mut Response, len: usize) {
    for index in 0..len {
        // SAFETY: the caller allocated `len` of them; texts are null or strings of C's allocator.
        unsafe {
            let text = (*answers.add(index)).text;
            if !text.is_null() {
                ptr::write_bytes(text, 0, libc::strlen(text));
                libc::free(text.cast());
            }
        }
    }
    // SAFETY: allocated by the caller, and not used again.
    unsafe { libc::free(answers.cast()) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_are_answered_or_refused() {
        let ask = |styles: &[c_int]| {
            let asked: Vec<Message> = styles.iter().map(|&style| Message { style, text: c"?".as_ptr() }).collect();
            let pointers: Vec<*const Message> = asked.iter().map(ptr::from_ref).collect();
            let mut password = b"geheim\0".to_vec();
            let mut responses = ptr::null_mut();
            let count = c_int::try_from(styles.len()).expect("few");
            // SAFETY: valid messages, and a place for the answers.
            let code = unsafe { converse(count, pointers.as_ptr(), &raw mut responses, password.as_mut_ptr().cast()) };
            if code != SUCCESS {
                return Err(code);
            }
            let mut texts = Vec::new();
            for index in 0..styles.len() {
                // SAFETY: as many answers as questions were given.
                let text = unsafe { (*responses.add(index)).text };
                // SAFETY: a string where it is not null.
                texts.push(if text.is_null() { None } else { Some(unsafe { CStr::from_ptr(text) }.to_owned()) });
            }
            // SAFETY: ours to free.
            unsafe { discard(responses, styles.len()) };
            Ok(texts)
        };
        assert_eq!(ask(&[PROMPT_ECHO_OFF, TEXT_INFO]), Ok(vec![Some(c"geheim".to_owned()), None]));
        assert_eq!(ask(&[PROMPT_ECHO_OFF, 2]), Err(CONV_ERR));
        assert_eq!(ask(&[]), Err(CONV_ERR));
    }

    #[test]
    fn an_unknown_user_is_refused() {
        // without a stack of that name the one for "other" decides, which denies strangers everywhere
        if let Ok(pam) = Pam::load() {
            let refused = pam.check("pgusher-no-such-service", "no such user", b"x", "127.0.0.1").unwrap_err();
            assert!(refused.contains("() failed: "), "{refused}");
            assert!(pam.check("a\0b", "u", b"x", "").is_err());
        }
    }
}
