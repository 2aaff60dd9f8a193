/* An SMTP server for benchmarks that takes everything, counts it and keeps nothing.

       fast_sink COUNTERS [CERTIFICATE.pem]

   It listens on a free port of 127.0.0.1, which it prints. It offers what smtp-sink does not:
   CHUNKING, AUTH (anybody is let in) and, compiled with -DWITH_TLS and given a PEM file that holds
   certificate and key, TLS from the start. COUNTERS is a file that it keeps two numbers in, 64 bits
   each: messages, and octets of content.

   One thread a session. Replies are kept until the session has nothing left to read, so what came
   in one write is answered in one. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/mman.h>
#ifdef __linux__
#include <sys/prctl.h>
#endif
#include <sys/socket.h>
#include <unistd.h>
#ifdef WITH_TLS
#include <openssl/ssl.h>
static SSL_CTX *context;
#endif

#define ROOM (256 * 1024)

static struct counters { atomic_llong messages, octets; } *counters;

struct session {
    int socket;
    void *tls;
    size_t from, end;   /* what was received and not yet looked at: in[from..end) */
    size_t queued;      /* replies that wait: out[0..queued) */
    int recipients;
    char in[ROOM], out[ROOM];
};

static void fail(const char *what) { perror(what); exit(1); }

static ssize_t receive(struct session *s, void *into, size_t room) {
#ifdef WITH_TLS
    if (s->tls) return SSL_read(s->tls, into, (int)room);
#endif
    return read(s->socket, into, room);
}

static ssize_t transmit(struct session *s, const char *octets, size_t count) {
#ifdef WITH_TLS
    if (s->tls) return SSL_write(s->tls, octets, (int)count);
#endif
    return write(s->socket, octets, count);
}

static int flush_replies(struct session *s) {
    for (size_t written = 0; written < s->queued;) {
        ssize_t count = transmit(s, s->out + written, s->queued - written);
        if (count <= 0) return 0;
        written += (size_t)count;
    }
    s->queued = 0;
    return 1;
}

static int reply(struct session *s, const char *text) {
    size_t count = strlen(text);
    if (s->queued + count > ROOM && !flush_replies(s)) return 0;
    memcpy(s->out + s->queued, text, count);
    s->queued += count;
    return 1;
}

/* Wait for more of what the client says: 0 when there is no more, or no room for it. */
static int more(struct session *s) {
    if (!flush_replies(s)) return 0;
    memmove(s->in, s->in + s->from, s->end - s->from);
    s->end -= s->from;
    s->from = 0;
    if (s->end == ROOM) return 0;
    ssize_t count = receive(s, s->in + s->end, ROOM - s->end);
    if (count <= 0) return 0;
    s->end += (size_t)count;
    return 1;
}

/* The next line, ended by NUL instead of LF; NULL at the end of the session. */
static char *next_line(struct session *s) {
    size_t seen = 0;
    for (;;) {
        char *end = memchr(s->in + s->from + seen, '\n', s->end - s->from - seen);
        if (end) {
            char *line = s->in + s->from;
            *end = 0;
            s->from = (size_t)(end - s->in) + 1;
            return line;
        }
        seen = s->end - s->from;
        if (!more(s)) return NULL;
    }
}

static int accepted(struct session *s, long long octets) {
    atomic_fetch_add(&counters->octets, octets);
    atomic_fetch_add(&counters->messages, 1);
    s->recipients = 0;
    return reply(s, "250 2.0.0 Ok: queued as 4F1C2D3A5B\r\n");
}

/* Content up to the lone dot. The CRLF of DATA itself counts as the one in front of it. */
static int take_data(struct session *s) {
    if (!s->recipients) return reply(s, "503 5.5.1 No valid recipients\r\n");
    if (!reply(s, "354 End data with <CR><LF>.<CR><LF>\r\n")) return 0;
    s->from -= 2;
    memcpy(s->in + s->from, "\r\n", 2);
    for (long long octets = 0;;) {
        char *end = memmem(s->in + s->from, s->end - s->from, "\r\n.\r\n", 5);
        if (end) {
            octets += end - (s->in + s->from);
            s->from = (size_t)(end - s->in) + 5;
            return accepted(s, octets);
        }
        size_t done = s->end - s->from > 4 ? s->end - s->from - 4 : 0;
        octets += (long long)done;
        s->from += done;
        if (!more(s)) return 0;
    }
}

/* RFC 3030: so many octets, and those of the last chunk end the message. */
static int take_chunk(struct session *s, const char *arguments, long long *octets) {
    long long left = atoll(arguments);
    int is_last = strcasestr(arguments, "LAST") != NULL;
    *octets += left;
    while (left) {
        size_t here = s->end - s->from;
        if ((long long)here > left) here = (size_t)left;
        s->from += here;
        left -= (long long)here;
        if (left && !more(s)) return 0;
    }
    if (!is_last) return reply(s, "250 2.0.0 Ok\r\n");
    if (!s->recipients) return reply(s, "503 5.5.1 No valid recipients\r\n");
    return accepted(s, *octets);
}

static int authenticate(struct session *s, const char *arguments) {
    int is_login = !strncasecmp(arguments, "LOGIN", 5), has_initial = strchr(arguments, ' ') != NULL;
    for (int steps = 1 + is_login - has_initial; steps; steps--)
        if (!reply(s, steps == 2 ? "334 VXNlcm5hbWU6\r\n" : "334 UGFzc3dvcmQ6\r\n") || !next_line(s))
            return 0;
    return reply(s, "235 2.7.0 Authentication successful\r\n");
}

#define IS(verb) (!strncasecmp(line, verb, sizeof verb - 1))

static void talk(struct session *s) {
    long long octets = 0;
    int going = reply(s, "220 sink ESMTP\r\n");
    for (char *line; going && (line = next_line(s));) {
        if (IS("MAIL FROM:")) s->recipients = 0, octets = 0, going = reply(s, "250 2.1.0 Ok\r\n");
        else if (IS("RCPT TO:")) s->recipients++, going = reply(s, "250 2.1.5 Ok\r\n");
        else if (IS("DATA")) going = take_data(s);
        else if (IS("BDAT ")) going = take_chunk(s, line + 5, &octets);
        else if (IS("RSET") || IS("NOOP")) s->recipients = 0, going = reply(s, "250 2.0.0 Ok\r\n");
        else if (IS("EHLO"))
            going = reply(s, "250-sink\r\n250-PIPELINING\r\n250-CHUNKING\r\n250-SIZE 104857600\r\n"
                             "250-8BITMIME\r\n250-SMTPUTF8\r\n250-ENHANCEDSTATUSCODES\r\n"
                             "250 AUTH PLAIN LOGIN\r\n");
        else if (IS("HELO")) going = reply(s, "250 sink\r\n");
        else if (IS("AUTH ")) line[strcspn(line, "\r")] = 0, going = authenticate(s, line + 5);
        else if (IS("QUIT")) reply(s, "221 2.0.0 Bye\r\n"), going = 0;
        else going = reply(s, "500 5.5.2 Unknown command\r\n");
    }
    flush_replies(s);
}

static void *serve(void *given) {
    struct session *s = given;
#ifdef WITH_TLS
    if (context) {
        s->tls = SSL_new(context);
        SSL_set_fd(s->tls, s->socket);
        if (SSL_accept(s->tls) == 1) { talk(s); SSL_shutdown(s->tls); }
        SSL_free(s->tls);
    } else
#endif
    talk(s);
    close(s->socket);
    free(s);
    return NULL;
}

static void set_up_tls(const char *file) {
#ifdef WITH_TLS
    context = SSL_CTX_new(TLS_server_method());
    if (SSL_CTX_use_certificate_chain_file(context, file) != 1
        || SSL_CTX_use_PrivateKey_file(context, file, SSL_FILETYPE_PEM) != 1) fail(file);
#else
    fprintf(stderr, "%s: compiled without TLS\n", file);
    exit(1);
#endif
}

int main(int count, char **arguments) {
    if (count < 2) return fprintf(stderr, "fast_sink COUNTERS [CERTIFICATE.pem]\n"), 2;
    signal(SIGPIPE, SIG_IGN);
#ifdef __linux__
    prctl(PR_SET_PDEATHSIG, SIGTERM); /* a command that is killed leaves nothing behind */
#endif
    if (count > 2) set_up_tls(arguments[2]);
    int file = open(arguments[1], O_RDWR | O_CREAT, 0600);
    if (file < 0 || ftruncate(file, sizeof *counters)) fail(arguments[1]);
    counters = mmap(NULL, sizeof *counters, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (counters == MAP_FAILED) fail("mmap");

    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t length = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM, 0), one = 1;
    if (bind(listener, (void *)&address, length) || listen(listener, 1000)) fail("listen");
    getsockname(listener, (void *)&address, &length);
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);

    pthread_attr_t detached;
    pthread_attr_init(&detached);
    pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
    for (;;) {
        struct session *s = calloc(1, sizeof *s);
        pthread_t thread;
        if (!s || (s->socket = accept(listener, NULL, NULL)) < 0) fail("accept");
        setsockopt(s->socket, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        if (pthread_create(&thread, &detached, serve, s)) fail("pthread_create");
    }
}
