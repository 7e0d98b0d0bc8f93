"""A service manager with a file descriptor store, for one service: service_manager.py <notify socket> <command…>

It prints what it is told as JSON lines. Signals: SIGHUP goes to the service; SIGUSR1 stops it, with SIGTERM, and
keeps its sockets; SIGUSR2 kills it; SIGWINCH starts it again, with the sockets and one more under another name;
SIGTERM stops it for good.
"""
import array, ctypes, json, os, select, signal, socket, sys

path, command = sys.argv[1], sys.argv[2:]
manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
manager.bind(path)
store = []  # (name, descriptor)
child, over = None, False


def say(event, **details):
    print(json.dumps({"event": event, **details}), flush=True)


def start(passed):
    pid = os.fork()
    if pid != 0:
        return pid
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    high = [os.dup2(descriptor, 500 + at) for at, (_, descriptor) in enumerate(passed)]
    for at, descriptor in enumerate(high):
        os.dup2(descriptor, 3 + at)
    os.closerange(3 + len(passed), 600)
    os.environ["NOTIFY_SOCKET"] = path
    if passed:
        os.environ["LISTEN_PID"] = str(os.getpid())
        os.environ["LISTEN_FDS"] = str(len(passed))
        os.environ["LISTEN_FDNAMES"] = ":".join(name for name, _ in passed)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    os.execvp(command[0], command)


def told():
    global store
    data, control, _, _ = manager.recvmsg(4096, 4096)
    descriptors = array.array("i")
    for level, kind, content in control:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            descriptors.frombytes(content)
    lines = data.decode().split("\n")
    name = next((line[7:] for line in lines if line.startswith("FDNAME=")), "")
    if "FDSTORE=1" in lines:
        known = {os.fstat(descriptor).st_ino for _, descriptor in store}
        new = [descriptor for descriptor in descriptors if os.fstat(descriptor).st_ino not in known]
        store += [(name, descriptor) for descriptor in new]
        for descriptor in set(descriptors) - set(new):
            os.close(descriptor)
        say("store_added", message=name, value=len(new))
    elif "FDSTOREREMOVE=1" in lines:
        for _, descriptor in [entry for entry in store if entry[0] == name]:
            os.close(descriptor)
        store = [entry for entry in store if entry[0] != name]
        say("store_removed", message=name, value=len(store))
    else:
        say("told", message=lines[0])


watched = [signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH, signal.SIGTERM, signal.SIGCHLD]
reader, writer = os.pipe()
os.set_blocking(writer, False)
signal.set_wakeup_fd(writer)
for number in watched:
    signal.signal(number, lambda *_: None)
child = start([])
while True:
    ready, _, _ = select.select([manager, reader], [], [])
    if manager in ready:
        told()
        continue
    number = os.read(reader, 1)[0]
    if number == signal.SIGCHLD:
        ended, status = os.waitpid(-1, os.WNOHANG)
        if ended != child or ended == 0:
            continue
        child = None
        if over:
            sys.exit(os.waitstatus_to_exitcode(status))
        say("service_ended", value=os.waitstatus_to_exitcode(status))
    elif number == signal.SIGWINCH:
        # A port that nobody is asked for, under the name of one that is.
        other = socket.create_server(("127.0.0.1", 0))
        stranger = ("mmproxy-1-0-63-%d-127.0.0.1" % other.getsockname()[1], other.detach())
        store.append(stranger)
        # What is no socket of the internet is left alone.
        child = start([*store, ("manager", manager.fileno())])
    elif child is None:
        sys.exit(0)
    else:
        over = over or number == signal.SIGTERM
        kinds = {signal.SIGUSR1: signal.SIGTERM, signal.SIGUSR2: signal.SIGKILL}
        os.kill(child, kinds.get(number, number))
