//! The memory of a process over the time of a test.

/// Resident memory in kB, with how much of the work was done then.
#[derive(Default)]
pub(crate) struct Memory(Vec<(u64, u64)>);

impl Memory {
    pub(crate) fn note(&mut self, done: u64, kilobytes: u64) {
        self.0.push((done, kilobytes));
    }

    /// The means in kB of the first tenth of the work and of its last.
    pub(crate) fn first_and_last_tenth(&self, work: u64) -> (u64, u64) {
        let mean = |wanted: &dyn Fn(u64) -> bool| {
            let part: Vec<u64> =
                self.0.iter().filter(|(done, _)| wanted(*done)).map(|(_, kilobytes)| *kilobytes).collect();
            part.iter().sum::<u64>() / u64::try_from(part.len().max(1)).expect("few")
        };
        (mean(&|done| done <= work / 10), mean(&|done| done >= work - work / 10))
    }
}

/// Resident memory of a process in kB.
pub(crate) fn resident_kb(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the process lives");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("every process has it");
    line.split_whitespace().nth(1).and_then(|word| word.parse().ok()).expect("a number of kB")
}
