-- Tables of read models carry no foreign keys, and nothing may depend on them: a rebuild replaces them.
-- Indexes go without a name, since the copy made by a rebuild gets names by the same rule.
create table projects (
    slug text primary key,
    name text not null,
    archived boolean not null,
    stages jsonb not null,
    created_at timestamptz not null,
    changed_at timestamptz not null,
    sequence bigint not null
);
