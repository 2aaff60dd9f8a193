/* The limit: what the machine can do. A client in C that does nothing but SMTP, pipelined.

       limit PORT MESSAGES SESSIONS OCTETS DEPTH

   It sends messages of about so many octets, each to a recipient of its own, over so many sessions,
   a thread each. DEPTH 0 is DATA, with the next envelope riding behind each content (RFC 2920): one
   round trip a message. From 1 it is BDAT (RFC 3030), so many messages a flight. It checks that
   every reply is 2yz or 3yz, and waits for all of them. */

#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static int port, messages, sessions, octets, depth;
static char *filler;

struct session {
    int socket, number, count;
    char *out;
    size_t queued, room;
};

static void fail(const char *what) { perror(what); exit(1); }

static void queue(struct session *s, const char *text, size_t count) {
    if (s->queued + count > s->room) {
        s->room = 2 * (s->queued + count);
        if (!(s->out = realloc(s->out, s->room))) fail("realloc");
    }
    memcpy(s->out + s->queued, text, count);
    s->queued += count;
}

static void write_out(struct session *s) {
    for (size_t written = 0; written < s->queued;) {
        ssize_t count = write(s->socket, s->out + written, s->queued - written);
        if (count <= 0) fail("write");
        written += (size_t)count;
    }
    s->queued = 0;
}

/* Read so many replies; "250-" lines belong to the reply that follows. */
static void expect(struct session *s, int replies) {
    static __thread char in[65536];
    static __thread size_t end;
    for (size_t from = 0;;) {
        char *line_end;
        while (replies && (line_end = memchr(in + from, '\n', end - from))) {
            char *line = in + from;
            if (line[0] != '2' && line[0] != '3')
                fprintf(stderr, "%.*s\n", (int)(line_end - line), line), exit(1);
            replies -= line[3] != '-';
            from = (size_t)(line_end - in) + 1;
        }
        memmove(in, in + from, end -= from);
        if (!replies) return;
        from = 0;
        ssize_t count = read(s->socket, in + end, sizeof in - end);
        if (count <= 0) fail("read");
        end += (size_t)count;
    }
}

static int write_header(struct session *s, int number, char *into, size_t room) {
    return snprintf(into, room,
                    "From: Ada <ada@example.com>\r\nTo: reader%d.%d@example.org\r\n"
                    "Subject: News %d\r\nMessage-ID: <%d.%d@example.com>\r\n\r\n",
                    s->number, number, number, s->number, number);
}

static void queue_envelope(struct session *s, int number, const char *command) {
    char lines[300];
    int count = snprintf(lines, sizeof lines,
                         "MAIL FROM:<ada@example.com>\r\nRCPT TO:<reader%d.%d@example.org>\r\n%s",
                         s->number, number, command);
    queue(s, lines, (size_t)count);
}

static void queue_content(struct session *s, const char *header, int count) {
    queue(s, header, (size_t)count);
    queue(s, filler, (size_t)(octets > count ? octets - count : 0));
}

static void send_data(struct session *s) {
    char header[300];
    queue_envelope(s, 0, "DATA\r\n");
    write_out(s);
    expect(s, 3);
    for (int number = 0; number < s->count; number++) {
        queue_content(s, header, write_header(s, number, header, sizeof header));
        queue(s, "\r\n.\r\n", 5);
        int is_last = number + 1 == s->count;
        if (!is_last) queue_envelope(s, number + 1, "DATA\r\n");
        write_out(s);
        expect(s, is_last ? 1 : 4);
    }
}

static void send_chunks(struct session *s) {
    char header[300], command[60];
    for (int number = 0; number < s->count;) {
        int flight = 0;
        for (; flight < depth && number < s->count; flight++, number++) {
            int count = write_header(s, number, header, sizeof header);
            int size = octets > count ? octets : count;
            snprintf(command, sizeof command, "BDAT %d LAST\r\n", size);
            queue_envelope(s, number, command);
            queue_content(s, header, count);
        }
        write_out(s);
        expect(s, 3 * flight);
    }
}

static void *run(void *given) {
    struct session *s = given;
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_port = htons((unsigned short)port),
                                  .sin_addr = {htonl(INADDR_LOOPBACK)}};
    int one = 1;
    s->socket = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(s->socket, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (connect(s->socket, (void *)&address, sizeof address)) fail("connect");
    expect(s, 1);
    queue(s, "EHLO limit\r\n", 12);
    write_out(s);
    expect(s, 1);
    if (s->count) depth ? send_chunks(s) : send_data(s);
    queue(s, "QUIT\r\n", 6);
    write_out(s);
    expect(s, 1);
    close(s->socket);
    free(s->out);
    return NULL;
}

int main(int count, char **arguments) {
    if (count != 6) return fprintf(stderr, "limit PORT MESSAGES SESSIONS OCTETS DEPTH\n"), 2;
    signal(SIGPIPE, SIG_IGN);
    port = atoi(arguments[1]), messages = atoi(arguments[2]), sessions = atoi(arguments[3]);
    octets = atoi(arguments[4]), depth = atoi(arguments[5]);
    if (!(filler = malloc((size_t)octets + 78))) fail("malloc");
    for (int at = 0; at < octets; at += 78)
        memcpy(filler + at, "this is a line of the newsletter, as long as a line of text "
                            "usually is it it\r\n", 78);
    struct session *all = calloc((size_t)sessions, sizeof *all);
    pthread_t *threads = calloc((size_t)sessions, sizeof *threads);
    if (!all || !threads) fail("calloc");
    for (int number = 0; number < sessions; number++) {
        all[number].number = number;
        all[number].count = messages / sessions + (number < messages % sessions);
        if (pthread_create(&threads[number], NULL, run, &all[number])) fail("pthread_create");
    }
    for (int number = 0; number < sessions; number++) pthread_join(threads[number], NULL);
    return 0;
}
