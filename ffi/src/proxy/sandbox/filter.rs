//! The system call filter (seccomp(2)).
//!
//! It consists of two programs, of which the stricter answer applies. The first lists what a run needs; anything else
//! returns "not implemented", which makes libraries fall back. The second refuses, with "operation not permitted",
//! what an intruder would want: by name, or by an argument of a call that the first allows. The kernel knows in
//! advance which calls pass both whatever their arguments, and runs no program for them (since Linux 5.11): all calls
//! of the data path are of that kind.

use std::collections::BTreeMap;
use std::io;

use crate::offload::links::LINK_DETACH;
use libc::c_long;
use seccompiler::{
    apply_filter, apply_filter_all_threads, BackendError, BpfProgram, SeccompAction,
    SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

/// Whom a filter is for.
pub enum Scope {
    /// Every thread, and those to come.
    Process,
    /// The calling thread, and those that it starts.
    Thread,
}

/// Installs the filter, for good.
/// `offload`: entries of BPF maps that are open may be read and changed, and links that are open detached; nothing else
/// of bpf(2).
pub fn install(scope: Scope, offload: bool) -> io::Result<()> {
    for program in programs(offload).map_err(io::Error::other)? {
        let applied = match scope {
            Scope::Process => apply_filter_all_threads(&program),
            Scope::Thread => apply_filter(&program),
        };
        applied.map_err(|error| match error {
            seccompiler::Error::Prctl(error) | seccompiler::Error::Seccomp(error) => error,
            // A thread that has a filter of its own.
            seccompiler::Error::ThreadSync(_) => io::Error::from_raw_os_error(libc::EBUSY),
            error => io::Error::other(error),
        })?;
    }
    Ok(())
}

/// Whether the calling thread may neither run a program nor open a file for writing, tried.
pub fn holds() -> bool {
    let errno = |result: c_long| (result < 0).then(|| io::Error::last_os_error().raw_os_error());
    let (nowhere, null) = (c"/nonexistent/mmproxy", c"/dev/null");
    let arguments: [*const libc::c_char; 1] = [std::ptr::null()];
    // SAFETY: the names and the empty lists are valid for the length of the calls. There is no such
    // program, so that it could not be run where it is allowed.
    let (run, write) = unsafe {
        let (path, list) = (nowhere.as_ptr(), arguments.as_ptr());
        (
            libc::syscall(libc::SYS_execve, path, list, list),
            libc::syscall(libc::SYS_openat, libc::AT_FDCWD, null.as_ptr(), libc::O_WRONLY),
        )
    };
    errno(run) == Some(Some(libc::EPERM)) && errno(write) == Some(Some(libc::EPERM))
}

/// Both programs, in the order in which they are installed: of two refusals the later one's error holds.
fn programs(offload: bool) -> Result<[BpfProgram; 2], BackendError> {
    let arch = std::env::consts::ARCH.try_into()?;
    let bpf = offload.then_some(&libc::SYS_bpf);
    let allowed = ALLOWED.iter().chain(ALLOWED_HERE).chain(bpf);
    let allowed = allowed.map(|&call| (call, Vec::new())).collect();
    let allow = SeccompFilter::new(
        allowed,
        SeccompAction::Errno(libc::ENOSYS as u32),
        SeccompAction::Allow,
        arch,
    )?;
    let deny = SeccompFilter::new(
        denied(offload)?,
        SeccompAction::Allow,
        SeccompAction::Errno(libc::EPERM as u32),
        arch,
    )?;
    Ok([allow.try_into()?, deny.try_into()?])
}

/// What a run needs: of the core, of Deno with its engine and its threads, and of the C library.
const ALLOWED: &[c_long] = &[
    // Descriptors.
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_preadv2,
    libc::SYS_pwritev2,
    libc::SYS_lseek,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_fcntl,
    libc::SYS_ioctl,
    libc::SYS_pipe2,
    libc::SYS_splice,
    libc::SYS_tee,
    libc::SYS_eventfd2,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_timerfd_gettime,
    libc::SYS_signalfd4,
    // Files, for reading.
    libc::SYS_openat,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_statfs,
    libc::SYS_fstatfs,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_readlinkat,
    libc::SYS_getdents64,
    libc::SYS_getcwd,
    libc::SYS_fadvise64,
    libc::SYS_flock,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    // Files that are watched for changes.
    libc::SYS_inotify_init1,
    libc::SYS_inotify_add_watch,
    libc::SYS_inotify_rm_watch,
    // Sockets.
    libc::SYS_socket,
    libc::SYS_socketpair,
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_connect,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    libc::SYS_sendto,
    libc::SYS_recvfrom,
    libc::SYS_sendmsg,
    libc::SYS_recvmsg,
    libc::SYS_sendmmsg,
    libc::SYS_recvmmsg,
    // Memory. JavaScript and the native core's callback are compiled to machine code while they run.
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_msync,
    libc::SYS_mincore,
    libc::SYS_brk,
    libc::SYS_membarrier,
    libc::SYS_pkey_alloc,
    libc::SYS_pkey_free,
    libc::SYS_pkey_mprotect,
    libc::SYS_get_mempolicy,
    // Threads.
    libc::SYS_clone,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_futex_waitv,
    libc::SYS_set_robust_list,
    libc::SYS_get_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_rseq,
    libc::SYS_prctl,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_setaffinity,
    libc::SYS_sched_getparam,
    libc::SYS_sched_getscheduler,
    libc::SYS_sched_get_priority_max,
    libc::SYS_sched_get_priority_min,
    libc::SYS_getpriority,
    libc::SYS_getcpu,
    // Signals.
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigpending,
    libc::SYS_rt_sigsuspend,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    libc::SYS_kill,
    libc::SYS_tgkill,
    libc::SYS_rt_sigqueueinfo,
    libc::SYS_rt_tgsigqueueinfo,
    // Time, and what the process is.
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_times,
    libc::SYS_setitimer,
    libc::SYS_getitimer,
    libc::SYS_getrusage,
    libc::SYS_prlimit64,
    libc::SYS_getrlimit,
    libc::SYS_sysinfo,
    libc::SYS_uname,
    libc::SYS_getrandom,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_gettid,
    libc::SYS_getpgid,
    libc::SYS_getsid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getgroups,
    libc::SYS_getresuid,
    libc::SYS_getresgid,
    libc::SYS_capget,
    // For the second program, which forbids it.
    libc::SYS_seccomp,
];

/// The older calls, which newer processors do not have.
#[cfg(target_arch = "x86_64")]
const ALLOWED_HERE: &[c_long] = &[
    libc::SYS_open,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_access,
    libc::SYS_readlink,
    libc::SYS_getdents,
    libc::SYS_poll,
    libc::SYS_select,
    libc::SYS_dup2,
    libc::SYS_pipe,
    libc::SYS_eventfd,
    libc::SYS_epoll_create,
    libc::SYS_epoll_wait,
    libc::SYS_getpgrp,
    libc::SYS_time,
    libc::SYS_alarm,
    libc::SYS_arch_prctl,
    // map_shadow_stack: a new thread's, where the processor guards returns.
    453,
];
#[cfg(not(target_arch = "x86_64"))]
const ALLOWED_HERE: &[c_long] = &[];

/// What the first program leaves out, and an operator reading a trace should see refused by name.
const DENIED: &[c_long] = &[
    // Other programs and processes.
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_getfd,
    libc::SYS_pidfd_send_signal,
    libc::SYS_tkill,
    libc::SYS_kcmp,
    // Files.
    libc::SYS_truncate,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    libc::SYS_copy_file_range,
    libc::SYS_renameat2,
    libc::SYS_linkat,
    libc::SYS_unlinkat,
    libc::SYS_symlinkat,
    libc::SYS_mkdirat,
    libc::SYS_mknodat,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_utimensat,
    libc::SYS_setxattr,
    libc::SYS_lsetxattr,
    libc::SYS_fsetxattr,
    libc::SYS_removexattr,
    libc::SYS_lremovexattr,
    libc::SYS_fremovexattr,
    libc::SYS_name_to_handle_at,
    libc::SYS_open_by_handle_at,
    libc::SYS_memfd_create,
    libc::SYS_chroot,
    libc::SYS_pivot_root,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    // Who and where the process is.
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_setreuid,
    libc::SYS_setregid,
    libc::SYS_setresuid,
    libc::SYS_setresgid,
    libc::SYS_setgroups,
    libc::SYS_setfsuid,
    libc::SYS_setfsgid,
    libc::SYS_capset,
    libc::SYS_setns,
    libc::SYS_unshare,
    libc::SYS_personality,
    libc::SYS_seccomp,
    // Other doors of the kernel.
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_kexec_load,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_adjtimex,
    libc::SYS_syslog,
    libc::SYS_acct,
    libc::SYS_quotactl,
];

#[cfg(target_arch = "x86_64")]
const DENIED_HERE: &[c_long] = &[
    libc::SYS_fork,
    libc::SYS_vfork,
    libc::SYS_creat,
    libc::SYS_rename,
    libc::SYS_renameat,
    libc::SYS_link,
    libc::SYS_unlink,
    libc::SYS_symlink,
    libc::SYS_mkdir,
    libc::SYS_rmdir,
    libc::SYS_mknod,
    libc::SYS_chmod,
    libc::SYS_chown,
    libc::SYS_lchown,
    libc::SYS_utime,
    libc::SYS_utimes,
    libc::SYS_futimesat,
    libc::SYS_iopl,
    libc::SYS_ioperm,
    libc::SYS_kexec_file_load,
];
#[cfg(target_arch = "aarch64")]
const DENIED_HERE: &[c_long] = &[libc::SYS_renameat, KEXEC_FILE_LOAD];
/// kexec_file_load(2) in asm-generic/unistd.h; libc does not name it for musl.
#[cfg(target_arch = "aarch64")]
const KEXEC_FILE_LOAD: c_long = 294;
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const DENIED_HERE: &[c_long] = &[];

/// prctl(2), PR_SET_VMA: a name for memory.
const PR_SET_VMA: i64 = 0x5356_4d41;
/// Of the C library's isatty(3), instead of TCGETS in its newer versions.
const TCGETS2: i64 = 0x802c_542a;
/// fcntl(2): signals of a descriptor, and who gets them.
const F_SETSIG: i64 = 10;
const F_SETOWN_EX: i64 = 15;
/// BPF_MAP_LOOKUP_ELEM, BPF_MAP_UPDATE_ELEM and BPF_MAP_DELETE_ELEM of bpf(2), and BPF_LINK_DETACH: all of them of
/// what is open.
const BPF_COMMANDS: [i64; 4] = [1, 2, 3, LINK_DETACH];
/// A packet socket, also when it is asked of AF_INET (packet(7)).
const SOCK_PACKET: i64 = 10;

/// What is forbidden always, and what is forbidden with some arguments: any of a call's rules does it.
fn denied(offload: bool) -> Result<BTreeMap<c_long, Vec<SeccompRule>>, BackendError> {
    let mut rules: BTreeMap<c_long, Vec<SeccompRule>> =
        DENIED.iter().chain(DENIED_HERE).map(|&call| (call, Vec::new())).collect();

    if offload {
        rules.insert(libc::SYS_bpf, vec![none_of(0, &BPF_COMMANDS)?]);
    }
    rules.insert(libc::SYS_openat, writing(2)?);
    #[cfg(target_arch = "x86_64")]
    rules.insert(libc::SYS_open, writing(1)?);

    // A thread of this process, in the namespaces that it is in. clone3(2) is left out by the first
    // program: its flags lie in memory, where a filter cannot look, and the C library falls back.
    let namespaces = [
        libc::CLONE_NEWNS,
        libc::CLONE_NEWCGROUP,
        libc::CLONE_NEWUTS,
        libc::CLONE_NEWIPC,
        libc::CLONE_NEWUSER,
        libc::CLONE_NEWPID,
        libc::CLONE_NEWNET,
    ];
    let mut clone = vec![rule([bits(0, libc::CLONE_THREAD, 0)?])?];
    for flag in namespaces {
        clone.push(rule([bits(0, flag, flag)?])?);
    }
    rules.insert(libc::SYS_clone, clone);

    // TCP, UDP, and the kernel's routing. CAP_NET_RAW, which the clients' addresses take, would open
    // raw and packet sockets, and see and forge the whole host's traffic; over a socket in the file
    // system (AF_UNIX) a program runs others for whoever asks (systemd, Docker).
    let (inet, inet6, netlink) =
        (i64::from(libc::AF_INET), i64::from(libc::AF_INET6), i64::from(libc::AF_NETLINK));
    let mut socket = vec![
        rule([not(0, inet)?, not(0, inet6)?, not(0, netlink)?])?,
        rule([is(0, netlink)?, not(2, i64::from(libc::NETLINK_ROUTE))?])?,
    ];
    for kind in [libc::SOCK_RAW, libc::SOCK_RDM, libc::SOCK_SEQPACKET, SOCK_PACKET as i32] {
        socket.push(rule([not(0, netlink)?, bits(1, 0xf, kind)?])?);
    }
    rules.insert(libc::SYS_socket, socket);

    // To this process alone.
    let own = i64::from(std::process::id());
    for call in [libc::SYS_kill, libc::SYS_tgkill, libc::SYS_rt_sigqueueinfo] {
        rules.insert(call, vec![rule([not(0, own)?])?]);
    }
    rules.insert(libc::SYS_rt_tgsigqueueinfo, vec![rule([not(0, own)?])?]);
    rules.insert(libc::SYS_prlimit64, vec![rule([not(0, 0)?, not(0, own)?])?]);
    let signals = [i64::from(libc::F_SETOWN), F_SETSIG, F_SETOWN_EX];
    let signals = signals.into_iter().map(|command| rule([is(1, command)?]));
    rules.insert(libc::SYS_fcntl, signals.collect::<Result<_, _>>()?);

    // Among those left out: keystrokes for the terminal that the program was started from (TIOCSTI).
    let requests = [
        libc::FIONREAD as i64,
        libc::FIONBIO as i64,
        libc::FIOCLEX as i64,
        libc::FIONCLEX as i64,
        libc::TIOCOUTQ as i64,
        libc::TIOCGWINSZ as i64,
        libc::TCGETS as i64,
        TCGETS2,
        // SIOCATMARK: whether the urgent mark is reached.
        0x8905,
        // SIOCOUTQNSD: what waits to be sent (tcp/offloading.rs).
        0x894b,
        // SIOCGIFNAME and SIOCGIFINDEX: without them no route is known to be one of `lo`, and
        // --auto-routes leaves its routes behind.
        0x8910,
        0x8933,
    ];
    rules.insert(libc::SYS_ioctl, vec![none_of(1, &requests)?]);
    let options = [
        i64::from(libc::PR_SET_NAME),
        i64::from(libc::PR_GET_NAME),
        PR_SET_VMA,
        i64::from(libc::PR_GET_DUMPABLE),
        i64::from(libc::PR_CAPBSET_READ),
        i64::from(libc::PR_GET_NO_NEW_PRIVS),
        i64::from(libc::PR_GET_SECCOMP),
    ];
    rules.insert(libc::SYS_prctl, vec![none_of(0, &options)?]);
    Ok(rules)
}

/// Rules for opening a file otherwise than for reading, by the flags in this argument (open(2)).
fn writing(flags: u8) -> Result<Vec<SeccompRule>, BackendError> {
    let modes = [libc::O_WRONLY, libc::O_RDWR, libc::O_ACCMODE];
    let mut rules = Vec::new();
    for mode in modes {
        rules.push(rule([bits(flags, libc::O_ACCMODE, mode)?])?);
    }
    // Each of them changes the file system whatever the mode.
    for flag in [libc::O_CREAT, libc::O_TRUNC] {
        rules.push(rule([bits(flags, flag, flag)?])?);
    }
    Ok(rules)
}

fn rule<const N: usize>(conditions: [SeccompCondition; N]) -> Result<SeccompRule, BackendError> {
    SeccompRule::new(conditions.into())
}

fn none_of(argument: u8, values: &[i64]) -> Result<SeccompRule, BackendError> {
    let conditions: Result<Vec<_>, _> = values.iter().map(|&value| not(argument, value)).collect();
    SeccompRule::new(conditions?)
}

// All of the arguments looked at are ints: the kernel takes their lower half.

fn is(argument: u8, value: i64) -> Result<SeccompCondition, BackendError> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value as u32 as u64)
}

fn not(argument: u8, value: i64) -> Result<SeccompCondition, BackendError> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, value as u32 as u64)
}

fn bits(argument: u8, mask: i32, value: i32) -> Result<SeccompCondition, BackendError> {
    let op = SeccompCmpOp::MaskedEq(mask as u32 as u64);
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, op, value as u32 as u64)
}
