# syntax=docker/dockerfile:1
# Both programs, in one small image. `docker build --tag homeostat .`

FROM rust:1.95-bookworm AS build
# The C libraries (librdkafka, OpenSSL, zstd) are built from source and linked in.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ make perl \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY Cargo.toml Cargo.lock ./
COPY src src
COPY schemas schemas
COPY pipelines pipelines
COPY tests tests
ENV CARGO_TARGET_DIR=/target
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/target \
    cargo build --release --workspace --bins --locked \
    && install -D -t /programs /target/release/homeostat /target/release/homeostat-executor /target/release/homeostat-shop \
        /target/release/homeostat-trial

FROM debian:bookworm-slim
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --create-home --home-dir /var/lib/homeostat homeostat
COPY --from=build /programs/ /usr/local/bin/
COPY pipelines/starter /etc/homeostat/pipelines/starter
COPY deploy/executor.toml /etc/homeostat/executor.toml
USER homeostat
ENV HOMEOSTAT__HTTP__LISTEN=0.0.0.0:8080
EXPOSE 8080
ENTRYPOINT ["homeostat"]
CMD ["run", "--pipelines", "/etc/homeostat/pipelines"]
