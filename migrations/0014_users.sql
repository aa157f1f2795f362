create table users (
    id uuid primary key,
    source text not null,
    -- Sealed under the person's own key.
    profile text not null,
    role text not null,
    -- Null for a role that is good for all.
    projects jsonb,
    disabled boolean not null,
    erased boolean not null,
    has_password boolean not null,
    setup_expires_at timestamptz,
    -- Sessions of an earlier one are over.
    epoch bigint not null,
    signed_in_at timestamptz,
    created_by text not null,
    created_at timestamptz not null,
    sequence bigint not null
);
