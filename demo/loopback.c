/* Preloaded into Orthanc, whose older versions can only listen on every interface: whatever is bound is bound to the loopback one. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>

int bind(int socket, const struct sockaddr *address, socklen_t length)
{
    int (*bind_anywhere)(int, const struct sockaddr *, socklen_t) = (int (*)(int, const struct sockaddr *, socklen_t))dlsym(RTLD_NEXT, "bind");
    struct sockaddr_storage loopback;

    if (address == NULL || length > sizeof loopback)
        return bind_anywhere(socket, address, length);
    memcpy(&loopback, address, length);
    if (address->sa_family == AF_INET && length >= sizeof(struct sockaddr_in))
        ((struct sockaddr_in *)&loopback)->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    else if (address->sa_family == AF_INET6 && length >= sizeof(struct sockaddr_in6))
        ((struct sockaddr_in6 *)&loopback)->sin6_addr = in6addr_loopback;
    return bind_anywhere(socket, (struct sockaddr *)&loopback, length);
}
