/* The program of a pod's sandbox container: holds the namespaces, reaps orphans, ends on SIGTERM. */
#include <signal.h>
#include <sys/wait.h>

int main(void) {
    sigset_t set;
    int sig;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGCHLD);
    sigprocmask(SIG_BLOCK, &set, 0);
    while (sigwait(&set, &sig) == 0) {
        if (sig != SIGCHLD) {
            return 0;
        }
        while (waitpid(-1, 0, WNOHANG) > 0) {
        }
    }
    return 1;
}
