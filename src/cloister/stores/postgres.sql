-- The schema of the PostgreSQL store, version 5. `cloister migrate` runs it in one transaction, as its owner.
--
-- Three roles that nobody logs in as, and that others are granted: cloister_application may work for one owner at a time,
-- cloister_operator may read the log and go through all sessions and credentials to rotate keys, cloister_lookup owns
-- what reads across owners and is granted to nobody who uses the store.
-- Every table has row-level security, forced on its owner too. The owner of the rows that a statement may touch is set
-- by the functions below, for their own transaction alone, so that nothing is left on a connection that others share.

CREATE SCHEMA cloister;

CREATE TABLE cloister.meta (version integer NOT NULL);
INSERT INTO cloister.meta VALUES (5);

-- Whether users have tenants here: settled by the first session, so that the two kinds never lie side by side.
CREATE TABLE cloister.tenancy (named boolean NOT NULL);

CREATE TABLE cloister.sessions (
    tenant text COLLATE "C" NOT NULL, "user" text COLLATE "C" NOT NULL, session text COLLATE "C" NOT NULL,
    version bigint NOT NULL, item_count bigint NOT NULL, token_count bigint NOT NULL,
    created_at bigint NOT NULL, updated_at bigint NOT NULL, expires_at bigint,
    turn bytea NOT NULL, wrapped bytea, head bytea, carry bytea,
    ended text CHECK (ended IN ('expired', 'ended')), ended_at bigint,
    PRIMARY KEY (tenant, "user", session)
) WITH (fillfactor = 80);
CREATE INDEX sessions_active ON cloister.sessions (tenant, "user", created_at, session) WHERE ended IS NULL;
CREATE INDEX sessions_by_id ON cloister.sessions (session);
CREATE INDEX sessions_by_expiry ON cloister.sessions (expires_at) WHERE ended IS NULL AND expires_at IS NOT NULL;

CREATE TABLE cloister.items (
    tenant text COLLATE "C" NOT NULL, "user" text COLLATE "C" NOT NULL, session text COLLATE "C" NOT NULL,
    position bigint NOT NULL,
    role text NOT NULL CHECK (role IN ('system', 'user', 'assistant', 'tool')),
    token_count bigint NOT NULL, sealed bytea NOT NULL,
    PRIMARY KEY (tenant, "user", session, position)
);
ALTER TABLE cloister.items ALTER COLUMN sealed SET STORAGE EXTERNAL; -- what is sealed does not compress

-- On the database's own clock. They mean nothing after a crash, so they are not logged.
CREATE UNLOGGED TABLE cloister.leases (
    tenant text COLLATE "C" NOT NULL, "user" text COLLATE "C" NOT NULL, session text COLLATE "C" NOT NULL,
    lease bytea NOT NULL, until timestamptz NOT NULL,
    PRIMARY KEY (tenant, "user", session)
) WITH (fillfactor = 50);

CREATE TABLE cloister.records (
    tenant text COLLATE "C" NOT NULL, "user" text COLLATE "C" NOT NULL, session text COLLATE "C" NOT NULL,
    key bytea NOT NULL, holder text NOT NULL, sealed bytea NOT NULL, expires_at bigint NOT NULL,
    PRIMARY KEY (tenant, "user", session, key)
);
CREATE INDEX records_by_expiry ON cloister.records (expires_at);

-- A session that said something has a number, under which its fingerprints lie: 0 is what anybody may say. Ending a
-- session, or erasing its owner, takes the names away, and sweeping then what lies under a number that is nobody's.
CREATE TABLE cloister.claims (
    number bigint GENERATED ALWAYS AS IDENTITY,
    tenant text COLLATE "C", "user" text COLLATE "C", session text COLLATE "C",
    PRIMARY KEY (number), UNIQUE (tenant, "user", session)
);
CREATE INDEX claims_of_nobody ON cloister.claims (number) WHERE session IS NULL;

CREATE TABLE cloister.fingerprints (
    claim bigint NOT NULL, digest bigint NOT NULL, scope text COLLATE "C" NOT NULL,
    PRIMARY KEY (digest, scope, claim)
);
CREATE INDEX fingerprints_by_claim ON cloister.fingerprints (claim);

-- What was spent, in billionths, by a user or (where there is none named) by all of a tenant's.
CREATE TABLE cloister.accounts (
    tenant text COLLATE "C" NOT NULL, "user" text COLLATE "C" NOT NULL, period text COLLATE "C" NOT NULL,
    spent bigint NOT NULL, until bigint NOT NULL,
    PRIMARY KEY (tenant, "user", period)
) WITH (fillfactor = 80);
CREATE INDEX accounts_by_end ON cloister.accounts (until);

-- And what turns have reserved of it, each under its lease. A turn that is settled changes its own row and no other, so
-- that none waits for another's commit; some later one adds it to the account, and removes it here. Both count together.
CREATE TABLE cloister.charges (
    tenant text COLLATE "C" NOT NULL, "user" text COLLATE "C" NOT NULL, period text COLLATE "C" NOT NULL,
    lease bytea NOT NULL, number bigint GENERATED ALWAYS AS IDENTITY, amount bigint NOT NULL, settled boolean NOT NULL,
    PRIMARY KEY (tenant, "user", period, lease, number)
);

-- By which secrets somebody is known. Nobody sees a row of it but through the functions below: who looks for one does not
-- know whose it is, and has its digest.
CREATE TABLE cloister.credentials (
    digest bytea NOT NULL, kind text COLLATE "C" NOT NULL, tenant text COLLATE "C" NOT NULL,
    "user" text COLLATE "C" NOT NULL, credential text COLLATE "C" NOT NULL,
    created_at bigint NOT NULL, expires_at bigint, sealed bytea NOT NULL,
    PRIMARY KEY (digest), UNIQUE (tenant, kind, credential)
);
CREATE INDEX credentials_by_user ON cloister.credentials (tenant, "user") WHERE "user" <> '';
CREATE INDEX credentials_by_expiry ON cloister.credentials (expires_at) WHERE expires_at IS NOT NULL;

CREATE TABLE cloister.audit (
    id bigint GENERATED ALWAYS AS IDENTITY, writer text NOT NULL, number bigint NOT NULL, at bigint NOT NULL,
    event text NOT NULL, severity text NOT NULL, owner text NOT NULL, other text NOT NULL, session text NOT NULL,
    detail text NOT NULL, previous bytea NOT NULL, hash bytea NOT NULL,
    tx xid8 NOT NULL DEFAULT pg_current_xact_id(),
    PRIMARY KEY (id)
);
CREATE INDEX audit_by_transaction ON cloister.audit (tx, id);

CREATE TABLE cloister.audit_owners (
    tenant text COLLATE "C" NOT NULL, "user" text COLLATE "C" NOT NULL, audit_id text NOT NULL, salt bytea NOT NULL,
    PRIMARY KEY (tenant, "user")
);

-- Who sees what. Where nobody was named, the settings are empty, and no user is.

DO $$
DECLARE
    t text;
BEGIN
    FOREACH t IN ARRAY ARRAY['meta', 'tenancy', 'sessions', 'items', 'leases', 'records', 'claims', 'fingerprints',
                             'accounts', 'charges', 'credentials', 'audit', 'audit_owners'] LOOP
        EXECUTE format('ALTER TABLE cloister.%I ENABLE ROW LEVEL SECURITY', t);
        EXECUTE format('ALTER TABLE cloister.%I FORCE ROW LEVEL SECURITY', t);
        EXECUTE format('CREATE POLICY lookup ON cloister.%I TO cloister_lookup USING (true) WITH CHECK (true)', t);
    END LOOP;
    FOREACH t IN ARRAY ARRAY['sessions', 'items', 'leases', 'records', 'audit_owners'] LOOP
        EXECUTE format($policy$
            CREATE POLICY mine ON cloister.%I TO cloister_application
            USING (tenant = current_setting('cloister.tenant', true)
                   AND "user" = current_setting('cloister.user', true))
        $policy$, t);
    END LOOP;
    FOREACH t IN ARRAY ARRAY['accounts', 'charges'] LOOP
        EXECUTE format($policy$
            CREATE POLICY mine_and_shared ON cloister.%I TO cloister_application
            USING (tenant = current_setting('cloister.tenant', true) AND current_setting('cloister.user', true) <> ''
                   AND ("user" = current_setting('cloister.user', true) OR "user" = ''))
        $policy$, t);
    END LOOP;
    CREATE POLICY written ON cloister.audit FOR INSERT TO cloister_application WITH CHECK (true);
    CREATE POLICY known ON cloister.meta FOR SELECT TO cloister_application USING (true);
END $$;

GRANT USAGE ON SCHEMA cloister TO cloister_application, cloister_lookup, cloister_operator;
GRANT SELECT ON cloister.meta TO cloister_application;
GRANT SELECT, INSERT, UPDATE, DELETE ON cloister.sessions, cloister.leases, cloister.accounts, cloister.charges
    TO cloister_application;
GRANT SELECT, INSERT, DELETE ON cloister.items, cloister.records TO cloister_application;
GRANT UPDATE (holder, sealed, expires_at) ON cloister.records TO cloister_application;
GRANT SELECT, DELETE ON cloister.audit_owners TO cloister_application;
GRANT INSERT (writer, number, at, event, severity, owner, other, session, detail, previous, hash)
    ON cloister.audit TO cloister_application;
GRANT SELECT, DELETE ON cloister.sessions, cloister.records, cloister.leases TO cloister_lookup;
GRANT SELECT, INSERT, UPDATE, DELETE ON cloister.claims, cloister.fingerprints, cloister.tenancy, cloister.credentials
    TO cloister_lookup;
GRANT SELECT, UPDATE, DELETE ON cloister.accounts, cloister.charges TO cloister_lookup;
GRANT SELECT, INSERT ON cloister.audit_owners TO cloister_lookup;
GRANT SELECT, DELETE ON cloister.audit TO cloister_lookup;

-- Across owners. Each returns what its name says, and nothing else.

CREATE FUNCTION cloister.names(p_names json) RETURNS text[]
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    n record;
    known text;
    named text[] := '{}';
BEGIN
    -- The names under which owners stand in the log. Where there is none yet, and a salt, the one proposed is taken.
    FOR n IN SELECT * FROM json_to_recordset(p_names) AS x(tenant text, "user" text, id text, salt text) LOOP
        SELECT o.audit_id INTO known FROM cloister.audit_owners o WHERE o.tenant = n.tenant AND o."user" = n."user";
        IF known IS NULL AND n.salt IS NOT NULL THEN
            INSERT INTO cloister.audit_owners VALUES (n.tenant, n."user", n.id, decode(n.salt, 'hex'))
            ON CONFLICT DO NOTHING;
            SELECT o.audit_id INTO known FROM cloister.audit_owners o WHERE o.tenant = n.tenant AND o."user" = n."user";
        END IF;
        named := named || coalesce(known, '');
    END LOOP;
    RETURN named;
END $$;

CREATE FUNCTION cloister.settle(p_named boolean) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    settled boolean;
BEGIN
    PERFORM pg_advisory_xact_lock_shared(7163914);
    SELECT t.named INTO settled FROM cloister.tenancy t;
    IF settled IS NOT DISTINCT FROM p_named THEN
        RETURN true;
    END IF;
    RETURN false;
END $$;

CREATE FUNCTION cloister.settle_anew(nonce bytea, p_named boolean, OUT echo bytea, OUT settled boolean)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    -- Alone, so that no session is on its way to be stored meanwhile.
    PERFORM pg_advisory_xact_lock(7163914);
    IF NOT EXISTS (SELECT FROM cloister.sessions) THEN
        DELETE FROM cloister.tenancy;
        INSERT INTO cloister.tenancy VALUES (p_named);
    END IF;
    echo := nonce;
    settled := (SELECT t.named FROM cloister.tenancy t) = p_named;
END $$;

CREATE FUNCTION cloister.hold(p_scopes text[], p_digests bigint[]) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    -- Nobody else changes these fingerprints until this transaction is over. Always in the same order, so that of many
    -- who want the same ones none waits for another who waits for it; of very many, whole scopes at once.
    IF cardinality(p_digests) > 512 THEN
        PERFORM pg_advisory_xact_lock(k) FROM (
            SELECT DISTINCT hashtextextended(s, 7163914) AS k FROM unnest(p_scopes) s ORDER BY k
        ) x;
        RETURN;
    END IF;
    PERFORM pg_advisory_xact_lock_shared(k) FROM (
        SELECT DISTINCT hashtextextended(s, 7163914) AS k FROM unnest(p_scopes) s ORDER BY k
    ) x;
    PERFORM pg_advisory_xact_lock(k) FROM (
        SELECT DISTINCT hashtextextended(s, d) AS k FROM unnest(p_scopes, p_digests) x(s, d) ORDER BY k
    ) x;
END $$;

-- By their keys, whatever the statistics say: a plan that was made while a table was empty is kept as it grows.
CREATE FUNCTION cloister.claim(p_session text, p_now bigint, p_claims json, most integer) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET enable_hashjoin = off SET enable_mergejoin = off SET enable_seqscan = off AS $$
DECLARE
    me text := current_setting('cloister.user', true);
    mine text := current_setting('cloister.tenant', true);
    scopes text[];
    digests bigint[];
    commons boolean[];
    uniques boolean[];
    ours bigint;
BEGIN
    SELECT array_agg(x.scope), array_agg(x.digest), array_agg(x.common), array_agg(x."unique")
    INTO scopes, digests, commons, uniques FROM (
        SELECT y.scope, y.digest, bool_or(y.common) AS common, bool_or(y."unique") AS "unique"
        FROM json_to_recordset(p_claims) AS y(scope text, digest bigint, common boolean, "unique" boolean)
        GROUP BY y.scope, y.digest
    ) x;
    SELECT c.number INTO ours FROM cloister.claims c
    WHERE c.tenant = mine AND c."user" = me AND c.session = p_session FOR KEY SHARE;
    IF NOT FOUND THEN
        INSERT INTO cloister.claims (tenant, "user", session) VALUES (mine, me, p_session) RETURNING number INTO ours;
    END IF;
    PERFORM cloister.hold(scopes, digests);
    WITH wanted AS (
        SELECT * FROM unnest(scopes, digests, commons, uniques) AS x(scope, digest, common, "unique")
    ), held AS (
        SELECT f.scope, f.digest, f.claim, (c.tenant, c."user") <> (mine, me) AND s.session IS NOT NULL
            AND s.ended IS NULL AND (s.expires_at IS NULL OR s.expires_at > p_now) AS counts
        FROM wanted w JOIN cloister.fingerprints f ON f.digest = w.digest AND f.scope = w.scope
        LEFT JOIN cloister.claims c ON c.number = f.claim
        LEFT JOIN cloister.sessions s ON s.tenant = c.tenant AND s."user" = c."user" AND s.session = c.session
    ), counted AS (
        SELECT w.*, coalesce(h.known, false) AS known, coalesce(h.others, 0) AS others
        FROM wanted w LEFT JOIN (
            SELECT scope, digest, bool_or(claim = 0) AS known, count(*) FILTER (WHERE counts) AS others
            FROM held GROUP BY scope, digest
        ) h ON h.digest = w.digest AND h.scope = w.scope
    ), wins AS (
        SELECT scope, digest, CASE WHEN common OR others >= most THEN 0 ELSE ours END AS claim FROM counted
        WHERE NOT known AND (common OR others < most OR NOT "unique")
    ), gone AS (
        DELETE FROM cloister.fingerprints f USING held h, wins w
        WHERE h.digest = w.digest AND h.scope = w.scope AND h.claim <> w.claim AND (w.claim = 0 OR h.counts IS NOT TRUE)
          AND f.digest = h.digest AND f.scope = h.scope AND f.claim = h.claim
    )
    INSERT INTO cloister.fingerprints SELECT claim, digest, scope FROM wins ON CONFLICT DO NOTHING;
END $$;

CREATE FUNCTION cloister.unclaim(p_session text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    -- One session's of the owner who is named, or all of theirs.
    UPDATE cloister.claims c SET tenant = NULL, "user" = NULL, session = NULL
    WHERE c.tenant = current_setting('cloister.tenant', true) AND c."user" = current_setting('cloister.user', true)
      AND (p_session IS NULL OR c.session = p_session);
END $$;

CREATE FUNCTION cloister.claims(
    nonce bytea, p_scope text, p_digests bigint[], p_now bigint,
    OUT echo bytea, OUT digests bigint[], OUT tenants text[], OUT users text[], OUT size bigint
)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET enable_hashjoin = off SET enable_mergejoin = off SET enable_seqscan = off AS $$
BEGIN
    echo := nonce;
    SELECT array_agg(f.digest), array_agg(c.tenant), array_agg(c."user"),
        (SELECT greatest(p.reltuples, 0) FROM pg_class p WHERE p.oid = 'cloister.fingerprints'::regclass)
    INTO digests, tenants, users, size
    FROM cloister.fingerprints f LEFT JOIN cloister.claims c ON c.number = f.claim
    LEFT JOIN cloister.sessions s ON s.tenant = c.tenant AND s."user" = c."user" AND s.session = c.session
    WHERE f.digest = ANY (p_digests) AND f.scope = p_scope
      AND (f.claim = 0 OR (s.session IS NOT NULL AND s.ended IS NULL AND (s.expires_at IS NULL OR s.expires_at > p_now)));
END $$;

CREATE FUNCTION cloister.seed(nonce bytea, p_scope text, p_digests bigint[], OUT echo bytea, OUT made bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    echo := nonce;
    PERFORM cloister.hold(array_fill(p_scope, ARRAY[cardinality(p_digests)]), p_digests);
    WITH gone AS (
        DELETE FROM cloister.fingerprints f WHERE f.digest = ANY (p_digests) AND f.scope = p_scope AND f.claim <> 0
    )
    INSERT INTO cloister.fingerprints SELECT DISTINCT 0, d, p_scope FROM unnest(p_digests) d ON CONFLICT DO NOTHING;
    GET DIAGNOSTICS made = ROW_COUNT;
END $$;

CREATE FUNCTION cloister.clear() RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    numbers bigint[];
    gone bigint;
BEGIN
    -- Past what others are at work on, for whom nobody waits here, and some at a time: the next sweep sees to the rest.
    numbers := ARRAY(
        SELECT c.number FROM cloister.claims c WHERE c.session IS NULL ORDER BY c.number LIMIT 5000 FOR UPDATE SKIP LOCKED
    );
    DELETE FROM cloister.fingerprints WHERE ctid = ANY (ARRAY(
        SELECT f.ctid FROM cloister.fingerprints f WHERE f.claim = ANY (numbers) FOR UPDATE SKIP LOCKED
    ));
    GET DIAGNOSTICS gone = ROW_COUNT;
    DELETE FROM cloister.claims c WHERE c.number = ANY (numbers)
        AND NOT EXISTS (SELECT FROM cloister.fingerprints f WHERE f.claim = c.number);
    RETURN gone;
END $$;

CREATE FUNCTION cloister.owner_of(nonce bytea, p_session text, OUT echo bytea, OUT tenant text, OUT "user" text)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT nonce, s.tenant, s."user"
    FROM (SELECT) one LEFT JOIN cloister.sessions s ON s.session = p_session LIMIT 1
$$;

CREATE FUNCTION cloister.tenanted(nonce bytea, OUT echo bytea, OUT tenanted boolean)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT nonce, (SELECT s.tenant <> '' FROM cloister.sessions s LIMIT 1)
$$;

CREATE FUNCTION cloister.expired(
    nonce bytea, p_now bigint, p_limit bigint, p_skip bigint,
    OUT echo bytea, OUT tenants text[], OUT users text[], OUT sessions text[], OUT versions bigint[]
)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT nonce, array_agg(d.tenant), array_agg(d."user"), array_agg(d.session), array_agg(d.version) FROM (
        SELECT s.tenant, s."user", s.session, s.version FROM cloister.sessions s
        WHERE s.ended IS NULL AND s.expires_at <= p_now ORDER BY s.expires_at LIMIT p_limit OFFSET p_skip
    ) d
$$;

CREATE FUNCTION cloister.sweep(
    nonce bytea, p_now bigint, p_before bigint, p_most bigint, OUT echo bytea, OUT gone bigint, OUT dropped bigint
)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    beyond bigint;
    cleared bigint;
BEGIN
    echo := nonce;
    dropped := 0;
    DELETE FROM cloister.records WHERE expires_at <= p_now;
    DELETE FROM cloister.credentials WHERE expires_at <= p_now;
    -- Left behind by a process that died, perhaps for a session that was erased at that moment. On the database's clock.
    DELETE FROM cloister.leases WHERE until < clock_timestamp() - interval '1 minute';
    DELETE FROM cloister.sessions WHERE ended IS NOT NULL AND ended_at < p_before;
    GET DIAGNOSTICS gone = ROW_COUNT;
    UPDATE cloister.claims SET tenant = NULL, "user" = NULL, session = NULL WHERE number IN (
        SELECT c.number FROM cloister.sessions s
        JOIN cloister.claims c ON c.tenant = s.tenant AND c."user" = s."user" AND c.session = s.session
        WHERE s.ended IS NULL AND s.expires_at <= p_now FOR UPDATE OF c SKIP LOCKED
    );
    WITH gone AS (
        DELETE FROM cloister.accounts WHERE ctid = ANY (ARRAY(
            SELECT a.ctid FROM cloister.accounts a WHERE a.until <= p_now FOR UPDATE SKIP LOCKED
        )) RETURNING tenant, "user", period
    )
    DELETE FROM cloister.charges h USING gone g
    WHERE h.tenant = g.tenant AND h."user" = g."user" AND h.period = g.period;
    PERFORM cloister.clear();
    -- Counting takes a while where there are many, so the database's own estimate says when it is worth it.
    SELECT p.reltuples - p_most INTO beyond FROM pg_class p WHERE p.oid = 'cloister.fingerprints'::regclass
        AND p.reltuples BETWEEN 100000 AND p_most * 0.9;
    IF NOT FOUND THEN
        SELECT count(*) - p_most INTO beyond FROM cloister.fingerprints;
    END IF;
    IF beyond > 0 THEN
        WITH held AS (
            SELECT claim, count(*) AS n FROM cloister.fingerprints WHERE claim <> 0 GROUP BY claim
        ), summed AS (
            SELECT claim, sum(n) OVER (ORDER BY claim) - n AS before FROM held
        )
        UPDATE cloister.claims SET tenant = NULL, "user" = NULL, session = NULL WHERE number IN (
            SELECT c.number FROM summed JOIN cloister.claims c ON c.number = summed.claim
            WHERE summed.before < beyond FOR UPDATE OF c SKIP LOCKED
        );
        LOOP
            cleared := cloister.clear();
            EXIT WHEN cleared = 0;
            dropped := dropped + cleared;
        END LOOP;
        IF NOT EXISTS (SELECT FROM cloister.fingerprints WHERE claim <> 0) THEN
            DELETE FROM cloister.fingerprints WHERE ctid = ANY (ARRAY(
                SELECT ctid FROM cloister.fingerprints WHERE claim = 0 LIMIT greatest(beyond - dropped, 0)
                FOR UPDATE SKIP LOCKED
            ));
            GET DIAGNOSTICS cleared = ROW_COUNT;
            dropped := dropped + cleared;
        END IF;
    END IF;
END $$;

CREATE FUNCTION cloister.every_session(
    nonce bytea, p_tenant text, p_user text, p_session text, p_limit bigint,
    OUT echo bytea, OUT rows cloister.sessions[]
)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT nonce, array_agg(d::cloister.sessions) FROM (
        SELECT s.* FROM cloister.sessions s WHERE (s.tenant, s."user", s.session) > (p_tenant, p_user, p_session)
        ORDER BY s.tenant, s."user", s.session LIMIT p_limit
    ) d
$$;

CREATE FUNCTION cloister.credential(nonce bytea, p_digest bytea, OUT echo bytea, OUT found cloister.credentials)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT nonce, c FROM (SELECT) one LEFT JOIN cloister.credentials c ON c.digest = p_digest
$$;

CREATE FUNCTION cloister.credentials(
    nonce bytea, p_tenant text, p_kind text, p_limit bigint, p_after text,
    OUT echo bytea, OUT rows cloister.credentials[]
)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT nonce, array_agg(d::cloister.credentials) FROM (
        SELECT c.* FROM cloister.credentials c WHERE c.tenant = p_tenant AND c.kind = p_kind AND c.credential > p_after
        ORDER BY c.credential LIMIT p_limit
    ) d
$$;

CREATE FUNCTION cloister.every_credential(
    nonce bytea, p_after bytea, p_limit bigint, OUT echo bytea, OUT rows cloister.credentials[]
)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT nonce, array_agg(d::cloister.credentials) FROM (
        SELECT c.* FROM cloister.credentials c WHERE c.digest > p_after ORDER BY c.digest LIMIT p_limit
    ) d
$$;

CREATE FUNCTION cloister.reseal(
    nonce bytea, p_old cloister.credentials, p_sealed bytea, OUT echo bytea, OUT changed bigint
)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    echo := nonce;
    UPDATE cloister.credentials c SET sealed = p_sealed
    WHERE c.digest = p_old.digest AND c IS NOT DISTINCT FROM p_old;
    GET DIAGNOSTICS changed = ROW_COUNT;
END $$;

CREATE FUNCTION cloister.enrol_row(p_new cloister.credentials) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    known cloister.credentials;
BEGIN
    INSERT INTO cloister.credentials SELECT (p_new).* ON CONFLICT DO NOTHING;
    IF FOUND THEN
        RETURN 'stored';
    END IF;
    SELECT * INTO known FROM cloister.credentials c WHERE c.digest = p_new.digest;
    known.sealed := p_new.sealed;
    RETURN CASE WHEN known IS NOT DISTINCT FROM p_new THEN 'repeated' ELSE 'credential' END;
END $$;

CREATE FUNCTION cloister.revoke_rows(p_tenant text, p_kind text, p_credential text, p_user text) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    gone bigint;
BEGIN
    -- One, or all of a user's.
    IF p_user IS NULL THEN
        DELETE FROM cloister.credentials c
        WHERE c.tenant = p_tenant AND c.kind = p_kind AND c.credential = p_credential;
    ELSE
        DELETE FROM cloister.credentials c WHERE c.tenant = p_tenant AND c."user" = p_user AND c."user" <> '';
    END IF;
    GET DIAGNOSTICS gone = ROW_COUNT;
    RETURN gone;
END $$;

CREATE FUNCTION cloister.audit_tail(
    nonce bytea, p_limit bigint, OUT echo bytea, OUT upto text, OUT rows cloister.audit[]
)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT nonce, pg_current_snapshot()::text, array_agg(d::cloister.audit ORDER BY d.id) FROM (
        SELECT a.* FROM cloister.audit a ORDER BY a.id DESC LIMIT p_limit
    ) d
$$;

-- What was committed between two snapshots, some at a time. Numbers are given out before a transaction commits, so they
-- do not tell what is new: a late one would lie behind where a reader has come. Snapshots do. Of the first, empty for
-- the beginning, the reader has seen everything; without a second one it is the present.
CREATE FUNCTION cloister.audit_trail(
    nonce bytea, p_seen text, p_upto text, p_tx text, p_id bigint, p_limit bigint,
    OUT echo bytea, OUT seen text, OUT upto text, OUT rows cloister.audit[]
)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_sort = off AS $$
DECLARE
    now pg_snapshot := pg_current_snapshot();
    old pg_snapshot;
    new pg_snapshot;
BEGIN
    IF pg_is_in_recovery() THEN -- where a snapshot does not say which transactions are still open
        RAISE read_only_sql_transaction;
    END IF;
    echo := nonce;
    -- A snapshot from the future was taken before a dump was restored, elsewhere: begin anew.
    IF greatest(pg_snapshot_xmax(nullif(p_seen, '')::pg_snapshot), pg_snapshot_xmax(nullif(p_upto, '')::pg_snapshot))
       > pg_snapshot_xmax(now) THEN
        p_seen := '';
        p_upto := '';
    END IF;
    IF p_upto = '' THEN
        p_tx := '0';
        p_id := 0;
    END IF;
    seen := p_seen;
    upto := coalesce(nullif(p_upto, ''), now::text);
    old := nullif(p_seen, '');
    new := upto;
    SELECT array_agg(d::cloister.audit ORDER BY d.tx, d.id) INTO rows FROM (
        SELECT a.* FROM cloister.audit a
        WHERE (a.tx, a.id) > (p_tx::xid8, p_id) AND a.tx >= coalesce(pg_snapshot_xmin(old), '0')
          AND (old IS NULL OR NOT pg_visible_in_snapshot(a.tx, old))
          -- Entries of transactions to come have been restored from a dump.
          AND (pg_visible_in_snapshot(a.tx, new) OR (old IS NULL AND a.tx >= pg_snapshot_xmax(now)))
        ORDER BY a.tx, a.id LIMIT p_limit
    ) d;
END $$;

-- Some at a time, in the order of transactions: what is left of a writer's entries has no gap.
CREATE FUNCTION cloister.audit_prune(
    nonce bytea, p_writers text[], p_numbers bigint[], p_tx text, p_id bigint, p_limit bigint,
    OUT echo bytea, OUT looked bigint, OUT gone bigint, OUT tx text, OUT id bigint
)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_sort = off AS $$
#variable_conflict use_column
DECLARE
    numbers bigint[];
BEGIN
    echo := nonce;
    SELECT count(*), max(d.tx::text::bigint)::text, (array_agg(d.id ORDER BY d.tx DESC, d.id DESC))[1],
        array_agg(d.id) FILTER (WHERE d.number <= d.upto)
    INTO looked, tx, id, numbers FROM (
        SELECT a.tx, a.id, a.number, w.upto FROM (
            SELECT * FROM cloister.audit x WHERE (x.tx, x.id) > (p_tx::xid8, p_id) ORDER BY x.tx, x.id LIMIT p_limit
        ) a LEFT JOIN unnest(p_writers, p_numbers) AS w(writer, upto) ON w.writer = a.writer
    ) d;
    DELETE FROM cloister.audit x WHERE x.id = ANY (numbers);
    GET DIAGNOSTICS gone = ROW_COUNT;
END $$;

CREATE FUNCTION cloister.audit_names(
    nonce bytea, OUT echo bytea, OUT tenants text[], OUT users text[], OUT ids text[], OUT salts bytea[]
)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT nonce, array_agg(o.tenant), array_agg(o."user"), array_agg(o.audit_id), array_agg(o.salt)
    FROM cloister.audit_owners o
$$;

-- One owner's. Each names the owner first, for its own transaction; the policies see to the rest.

CREATE FUNCTION cloister.put(p_entries json) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO cloister.audit (writer, number, at, event, severity, owner, other, session, detail, previous, hash)
    SELECT e.writer, e.number, e.at, e.event, e.severity, e.owner, e.other, e.session, e.detail,
           decode(e.previous, 'base64'), decode(e.hash, 'base64')
    FROM json_to_recordset(p_entries) AS e(
        writer text, number bigint, at bigint, event text, severity text, owner text, other text, session text,
        detail text, previous text, hash text)
    ORDER BY e.number;
END $$;

CREATE FUNCTION cloister.reserve(p_tenant text, p_lease bytea, p_charges json) RETURNS integer
LANGUAGE plpgsql SET enable_seqscan = off SET enable_bitmapscan = off AS $$
DECLARE
    c record;
    stands bigint;
    held record;
    added bigint;
    first integer := 0;
BEGIN
    -- Says which is the first account that would come beyond its limit, and reserves nothing then; or 0. Accounts are
    -- locked always in the same order, so that of many who want the same ones none waits for another who waits for it.
    FOR c IN SELECT * FROM cloister.charged(p_charges) x ORDER BY x."user", x.period LOOP
        SELECT a.spent INTO stands FROM cloister.accounts a
        WHERE a.tenant = p_tenant AND a."user" = c."user" AND a.period = c.period FOR UPDATE;
        IF NOT FOUND THEN
            INSERT INTO cloister.accounts VALUES (p_tenant, c."user", c.period, 0, c.until) ON CONFLICT DO NOTHING;
            SELECT a.spent INTO stands FROM cloister.accounts a
            WHERE a.tenant = p_tenant AND a."user" = c."user" AND a.period = c.period FOR UPDATE;
        END IF;
        SELECT coalesce(sum(h.amount), 0) AS total, count(*) FILTER (WHERE h.settled) AS settled,
            coalesce(sum(h.amount) FILTER (WHERE h.lease = p_lease AND NOT h.settled), 0) AS mine
        INTO held FROM cloister.charges h WHERE h.tenant = p_tenant AND h."user" = c."user" AND h.period = c.period;
        IF c.amount > held.mine AND stands + held.total + c.amount - held.mine > c.most THEN
            first := CASE WHEN first = 0 THEN c.place ELSE least(first, c.place) END;
        END IF;
        IF held.settled > 8 THEN
            WITH gone AS (
                DELETE FROM cloister.charges h
                WHERE h.tenant = p_tenant AND h."user" = c."user" AND h.period = c.period AND h.settled
                RETURNING h.amount
            )
            SELECT sum(g.amount) INTO added FROM gone g;
            UPDATE cloister.accounts a SET spent = a.spent + added
            WHERE a.tenant = p_tenant AND a."user" = c."user" AND a.period = c.period;
        END IF;
    END LOOP;
    IF first > 0 THEN
        RETURN first;
    END IF;
    FOR c IN SELECT * FROM cloister.charged(p_charges) LOOP
        UPDATE cloister.charges h SET amount = c.amount
        WHERE h.tenant = p_tenant AND h."user" = c."user" AND h.period = c.period AND h.lease = p_lease AND NOT h.settled;
        IF NOT FOUND THEN
            INSERT INTO cloister.charges (tenant, "user", period, lease, amount, settled)
            VALUES (p_tenant, c."user", c.period, p_lease, c.amount, false);
        END IF;
    END LOOP;
    RETURN 0;
END $$;

CREATE FUNCTION cloister.charged(p_charges json)
RETURNS TABLE (place integer, "user" text, period text, amount bigint, most bigint, until bigint)
LANGUAGE sql AS $$
    SELECT * FROM json_to_recordset(p_charges)
        AS x(place integer, "user" text, period text, amount bigint, most bigint, until bigint)
$$;

CREATE FUNCTION cloister.settle_charges(p_tenant text, p_lease bytea, p_charges json) RETURNS void
LANGUAGE plpgsql SET enable_seqscan = off SET enable_bitmapscan = off AS $$
DECLARE
    c record;
BEGIN
    FOR c IN SELECT * FROM cloister.charged(p_charges) LOOP
        UPDATE cloister.charges h SET amount = c.amount, settled = true
        WHERE h.tenant = p_tenant AND h."user" = c."user" AND h.period = c.period AND h.lease = p_lease AND NOT h.settled;
    END LOOP;
END $$;

CREATE FUNCTION cloister.charge(
    nonce bytea, p_tenant text, p_user text, p_lease bytea, p_charges json, p_reserve boolean,
    OUT echo bytea, OUT over integer
)
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM set_config('cloister.tenant', p_tenant, true), set_config('cloister.user', p_user, true);
    echo := nonce;
    over := 0;
    IF p_reserve THEN
        PERFORM set_config('synchronous_commit', 'off', true);
        over := cloister.reserve(p_tenant, p_lease, p_charges);
    ELSE
        PERFORM cloister.settle_charges(p_tenant, p_lease, p_charges);
    END IF;
END $$;

CREATE FUNCTION cloister.spent(
    nonce bytea, p_tenants text[], p_users text[], p_periods text[], OUT echo bytea, OUT amounts bigint[]
)
LANGUAGE plpgsql SET enable_seqscan = off SET enable_bitmapscan = off AS $$
DECLARE
    a record;
    stands bigint;
BEGIN
    echo := nonce;
    amounts := '{}';
    FOR a IN SELECT * FROM unnest(p_tenants, p_users, p_periods) AS x(tenant, "user", period) LOOP
        -- Nobody is called by a space: a tenant's account is read under no user's name.
        PERFORM set_config('cloister.tenant', a.tenant, true),
            set_config('cloister.user', coalesce(nullif(a."user", ''), ' '), true);
        -- In one statement, since others move amounts from one table to the other.
        SELECT coalesce(sum(x.amount), 0) INTO stands FROM (
            SELECT n.spent AS amount FROM cloister.accounts n
            WHERE n.tenant = a.tenant AND n."user" = a."user" AND n.period = a.period
            UNION ALL
            SELECT h.amount FROM cloister.charges h
            WHERE h.tenant = a.tenant AND h."user" = a."user" AND h.period = a.period
        ) x;
        amounts := amounts || stands;
    END LOOP;
END $$;

CREATE FUNCTION cloister.load(
    nonce bytea, p_tenant text, p_user text, p_session text, p_budget bigint, p_lease bytea, p_seconds double precision,
    p_record bytea, p_charges json DEFAULT NULL,
    OUT echo bytea, OUT busy boolean, OUT over integer, OUT name text, OUT session cloister.sessions,
    OUT positions bigint[], OUT roles text[], OUT counts bigint[], OUT seals bytea[],
    OUT holder text, OUT kept bytea, OUT kept_until bigint
)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    many bigint;
    r record;
BEGIN
    PERFORM set_config('cloister.tenant', p_tenant, true), set_config('cloister.user', p_user, true);
    echo := nonce;
    busy := false;
    IF p_charges IS NOT NULL THEN -- nobody ends the session, or erases its owner, until they are reserved
        PERFORM FROM cloister.sessions s
        WHERE s.tenant = p_tenant AND s."user" = p_user AND s.session = p_session FOR KEY SHARE;
    END IF;
    -- As many items as the budget is likely to hold, and one more; if it holds them all, once more with twice as many.
    SELECT greatest(least(s.item_count, p_budget * s.item_count / greatest(s.token_count, 1) * 9 / 8 + 4), 1)
    INTO many
    FROM cloister.sessions s
    WHERE s.tenant = p_tenant AND s."user" = p_user AND s.session = p_session AND s.ended IS NULL;
    IF p_lease IS NOT NULL AND FOUND THEN
        INSERT INTO cloister.leases AS l
        VALUES (p_tenant, p_user, p_session, p_lease, clock_timestamp() + make_interval(secs => p_seconds))
        ON CONFLICT (tenant, "user", session) DO UPDATE SET lease = excluded.lease, until = excluded.until
        WHERE l.lease = excluded.lease OR l.until <= clock_timestamp();
        IF NOT FOUND THEN
            busy := true;
            RETURN;
        END IF;
    END IF;
    SELECT o.audit_id INTO name FROM cloister.audit_owners o WHERE o.tenant = p_tenant AND o."user" = p_user;
    IF p_record IS NOT NULL THEN
        SELECT k.holder, k.sealed, k.expires_at INTO holder, kept, kept_until FROM cloister.records k
        WHERE k.tenant = p_tenant AND k."user" = p_user AND k.session = p_session AND k.key = p_record;
    END IF;
    IF p_charges IS NOT NULL AND many IS NOT NULL AND holder IS NULL THEN
        PERFORM set_config('synchronous_commit', 'off', true); -- as with the lease, which a crash forgets
        over := cloister.reserve(p_tenant, p_lease, p_charges);
        IF over > 0 THEN
            DELETE FROM cloister.leases l WHERE l.tenant = p_tenant AND l."user" = p_user AND l.session = p_session;
            RETURN;
        END IF;
    END IF;
    LOOP
        -- Session and items in one statement, so that both are of one moment.
        SELECT s AS session, i.* INTO r
        FROM cloister.sessions s, LATERAL (
            SELECT array_agg(t.position) AS positions, array_agg(t.role) AS roles, array_agg(t.token_count) AS counts,
                   array_agg(t.sealed) AS seals, sum(t.token_count) AS total, count(*) AS lines
            FROM (
                SELECT x.position, x.role, x.token_count, x.sealed FROM cloister.items x
                WHERE x.tenant = p_tenant AND x."user" = p_user AND x.session = p_session
                ORDER BY x.position DESC LIMIT many -- newest first
            ) t
        ) i
        WHERE s.tenant = p_tenant AND s."user" = p_user AND s.session = p_session;
        EXIT WHEN many IS NULL OR r.lines < many OR r.positions[many] = 0 OR r.total - r.counts[many] > p_budget
            OR NOT FOUND;
        many := many * 2;
    END LOOP;
    session := r.session;
    positions := r.positions;
    roles := r.roles;
    counts := r.counts;
    seals := r.seals;
END $$;

CREATE FUNCTION cloister.page(
    nonce bytea, p_tenant text, p_user text, p_session text, p_first bigint, p_limit bigint,
    OUT echo bytea, OUT session cloister.sessions,
    OUT positions bigint[], OUT roles text[], OUT counts bigint[], OUT seals bytea[]
)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    r record;
BEGIN
    PERFORM set_config('cloister.tenant', p_tenant, true), set_config('cloister.user', p_user, true);
    echo := nonce;
    SELECT s AS session, i.* INTO r
    FROM (SELECT) one
    LEFT JOIN cloister.sessions s ON s.tenant = p_tenant AND s."user" = p_user AND s.session = p_session
    LEFT JOIN LATERAL (
        SELECT array_agg(t.position) AS positions, array_agg(t.role) AS roles, array_agg(t.token_count) AS counts,
               array_agg(t.sealed) AS seals
        FROM (
            SELECT * FROM cloister.items x
            WHERE x.tenant = p_tenant AND x."user" = p_user AND x.session = p_session AND x.position >= p_first
            ORDER BY x.position LIMIT p_limit
        ) t
    ) i ON true;
    session := r.session;
    positions := r.positions;
    roles := r.roles;
    counts := r.counts;
    seals := r.seals;
END $$;

CREATE FUNCTION cloister.listing(
    nonce bytea, p_tenant text, p_user text, p_limit bigint, p_at bigint, p_below text,
    OUT echo bytea, OUT rows cloister.sessions[]
)
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM set_config('cloister.tenant', p_tenant, true), set_config('cloister.user', p_user, true);
    echo := nonce;
    SELECT array_agg(d::cloister.sessions) INTO rows FROM (
        SELECT s.* FROM cloister.sessions s
        WHERE s.tenant = p_tenant AND s."user" = p_user AND s.ended IS NULL
          AND (s.created_at, s.session) < (p_at, p_below)
        ORDER BY s.created_at DESC, s.session DESC LIMIT p_limit
    ) d;
END $$;

CREATE FUNCTION cloister.renew(
    nonce bytea, p_tenant text, p_user text, p_session text, p_lease bytea, p_seconds double precision,
    OUT echo bytea, OUT held boolean
)
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM set_config('cloister.tenant', p_tenant, true), set_config('cloister.user', p_user, true);
    echo := nonce;
    UPDATE cloister.leases l SET until = clock_timestamp() + make_interval(secs => p_seconds)
    WHERE l.tenant = p_tenant AND l."user" = p_user AND l.session = p_session AND l.lease = p_lease
      AND l.until > clock_timestamp();
    held := FOUND;
END $$;

CREATE FUNCTION cloister.release(
    nonce bytea, p_tenant text, p_user text, p_session text, p_lease bytea, OUT echo bytea
)
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM set_config('cloister.tenant', p_tenant, true), set_config('cloister.user', p_user, true);
    echo := nonce;
    DELETE FROM cloister.leases l
    WHERE l.tenant = p_tenant AND l."user" = p_user AND l.session = p_session AND l.lease = p_lease;
END $$;

CREATE FUNCTION cloister.begin(
    nonce bytea, p_session cloister.sessions, p_instead text,
    positions bigint[], roles text[], counts bigint[], seals bytea[],
    p_names json, p_expected text[], p_entries json, p_claims json, p_most integer, p_record json,
    p_charges json DEFAULT NULL, p_lease bytea DEFAULT NULL,
    OUT echo bytea, OUT outcome text, OUT named text[]
)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    stored bytea;
    over record;
BEGIN
    PERFORM set_config('cloister.tenant', p_session.tenant, true), set_config('cloister.user', p_session."user", true);
    echo := nonce;
    named := cloister.names(p_names);
    IF named <> p_expected THEN
        outcome := 'named';
        RETURN;
    END IF;
    IF NOT cloister.settle(p_session.tenant <> '') THEN
        outcome := 'unsettled';
        RETURN;
    END IF;
    SELECT s.turn INTO stored FROM cloister.sessions s
    WHERE s.tenant = p_session.tenant AND s."user" = p_session."user" AND s.session = p_session.session;
    IF FOUND THEN
        outcome := CASE WHEN stored = p_session.turn THEN 'repeated' ELSE 'taken' END;
        RETURN;
    END IF;
    IF p_instead IS NOT NULL THEN
        SELECT s.ended INTO over FROM cloister.sessions s
        WHERE s.tenant = p_session.tenant AND s."user" = p_session."user" AND s.session = p_instead FOR SHARE;
        IF NOT FOUND OR over.ended = 'ended' THEN
            outcome := 'ended';
            RETURN;
        END IF;
    END IF;
    IF p_record IS NOT NULL AND NOT cloister.keep(p_session.tenant, p_session."user", p_record) THEN
        outcome := 'record';
        RETURN;
    END IF;
    INSERT INTO cloister.sessions SELECT (p_session).*;
    INSERT INTO cloister.items
    SELECT p_session.tenant, p_session."user", p_session.session, x.* FROM unnest(positions, roles, counts, seals) x;
    IF p_claims IS NOT NULL THEN
        PERFORM cloister.claim(p_session.session, p_session.updated_at, p_claims, p_most);
    END IF;
    IF p_charges IS NOT NULL THEN
        PERFORM cloister.settle_charges(p_session.tenant, p_lease, p_charges);
    END IF;
    PERFORM cloister.put(p_entries);
    outcome := 'stored';
EXCEPTION WHEN unique_violation THEN -- the same moment, the same id: once more, and it is found above
    outcome := 'again';
END $$;

-- In the place of one that its writer has seen there, or of what was left of that, but of no other.
CREATE FUNCTION cloister.keep(p_tenant text, p_user text, p_record json) RETURNS boolean
LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO cloister.records AS k
    SELECT p_tenant, p_user, r.session, decode(r.key, 'base64'), r.holder, decode(r.sealed, 'base64'), r.expires_at
    FROM json_to_record(p_record) AS r(session text, key text, holder text, sealed text, expires_at bigint)
    ON CONFLICT (tenant, "user", session, key) DO UPDATE
    SET holder = EXCLUDED.holder, sealed = EXCLUDED.sealed, expires_at = EXCLUDED.expires_at
    WHERE k.holder = p_record #>> '{seen,holder}'
      AND k.sealed IN (decode(p_record #>> '{seen,sealed}', 'base64'), '');
    RETURN FOUND;
END $$;

CREATE FUNCTION cloister.commit(
    nonce bytea, p_tenant text, p_user text, p_session text, p_read bigint, p_lease bytea,
    p_version bigint, p_items bigint, p_tokens bigint, p_updated bigint, p_expires bigint, p_turn bytea, p_head bytea,
    positions bigint[], roles text[], counts bigint[], seals bytea[],
    p_names json, p_expected text[], p_entries json, p_claims json, p_most integer, p_record json,
    p_charges json DEFAULT NULL,
    OUT echo bytea, OUT outcome text, OUT named text[]
)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    now_version bigint;
    now_turn bytea;
BEGIN
    PERFORM set_config('cloister.tenant', p_tenant, true), set_config('cloister.user', p_user, true);
    echo := nonce;
    SELECT s.version, s.turn INTO now_version, now_turn FROM cloister.sessions s
    WHERE s.tenant = p_tenant AND s."user" = p_user AND s.session = p_session AND s.ended IS NULL FOR UPDATE;
    outcome := CASE
        WHEN NOT FOUND THEN 'ended'
        WHEN now_turn = p_turn THEN 'repeated'
        WHEN now_version <> p_read THEN 'version'
    END;
    IF outcome IS NOT NULL THEN
        RETURN;
    END IF;
    DELETE FROM cloister.leases l
    WHERE l.tenant = p_tenant AND l."user" = p_user AND l.session = p_session AND l.lease = p_lease
      AND l.until > clock_timestamp();
    IF NOT FOUND THEN
        outcome := 'lease';
        RETURN;
    END IF;
    IF p_names IS NULL THEN -- nobody but the owner is named, and known
        SELECT ARRAY[o.audit_id] INTO named FROM cloister.audit_owners o
        WHERE o.tenant = p_tenant AND o."user" = p_user;
    ELSE
        named := cloister.names(p_names);
    END IF;
    IF named IS DISTINCT FROM p_expected THEN
        outcome := 'named';
    ELSIF p_record IS NOT NULL AND NOT cloister.keep(p_tenant, p_user, p_record) THEN
        outcome := 'record';
    END IF;
    IF outcome IS NOT NULL THEN -- the lease is still needed
        INSERT INTO cloister.leases
        VALUES (p_tenant, p_user, p_session, p_lease, clock_timestamp() + interval '8 seconds') ON CONFLICT DO NOTHING;
        RETURN;
    END IF;
    UPDATE cloister.sessions s SET version = p_version, item_count = p_items, token_count = p_tokens,
        updated_at = p_updated, expires_at = p_expires, turn = p_turn, head = p_head
    WHERE s.tenant = p_tenant AND s."user" = p_user AND s.session = p_session;
    INSERT INTO cloister.items
    SELECT p_tenant, p_user, p_session, x.* FROM unnest(positions, roles, counts, seals) x;
    IF p_claims IS NOT NULL THEN
        PERFORM cloister.claim(p_session, p_updated, p_claims, p_most);
    END IF;
    IF p_charges IS NOT NULL THEN
        PERFORM cloister.settle_charges(p_tenant, p_lease, p_charges);
    END IF;
    PERFORM cloister.put(p_entries);
    outcome := 'stored';
END $$;

CREATE FUNCTION cloister.finish(
    nonce bytea, p_tenant text, p_user text, p_session text, p_ended text, p_now bigint, p_version bigint,
    p_lease bytea, p_names json, p_expected text[], p_entries json,
    OUT echo bytea, OUT outcome text, OUT named text[]
)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    s cloister.sessions;
BEGIN
    PERFORM set_config('cloister.tenant', p_tenant, true), set_config('cloister.user', p_user, true);
    echo := nonce;
    outcome := 'nothing';
    SELECT * INTO s FROM cloister.sessions x
    WHERE x.tenant = p_tenant AND x."user" = p_user AND x.session = p_session FOR UPDATE;
    IF NOT FOUND OR s.ended IN (p_ended, 'ended') OR s.version <> p_version THEN
        RETURN;
    END IF;
    IF p_version IS NOT NULL AND EXISTS (
        SELECT FROM cloister.leases l WHERE l.tenant = p_tenant AND l."user" = p_user AND l.session = p_session
        AND l.lease IS DISTINCT FROM p_lease AND l.until > clock_timestamp()
    ) THEN
        RETURN;
    END IF;
    named := cloister.names(p_names);
    IF named <> p_expected THEN
        outcome := 'named';
        RETURN;
    END IF;
    UPDATE cloister.sessions x SET wrapped = NULL, head = NULL, turn = '', item_count = 0, token_count = 0,
        carry = CASE WHEN p_ended = 'expired' THEN x.carry END, ended = p_ended, ended_at = p_now
    WHERE x.tenant = p_tenant AND x."user" = p_user AND x.session = p_session;
    DELETE FROM cloister.items x WHERE x.tenant = p_tenant AND x."user" = p_user AND x.session = p_session;
    DELETE FROM cloister.leases x WHERE x.tenant = p_tenant AND x."user" = p_user AND x.session = p_session;
    PERFORM cloister.unclaim(p_session);
    PERFORM cloister.put(p_entries);
    outcome := 'stored';
END $$;

CREATE FUNCTION cloister.erase(
    nonce bytea, p_tenant text, p_user text, p_names json, p_expected text[], p_entries json,
    OUT echo bytea, OUT outcome text, OUT named text[], OUT gone bigint
)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
    PERFORM set_config('cloister.tenant', p_tenant, true), set_config('cloister.user', p_user, true);
    echo := nonce;
    named := cloister.names(p_names);
    IF named <> p_expected THEN
        outcome := 'named';
        RETURN;
    END IF;
    PERFORM cloister.put(p_entries);
    DELETE FROM cloister.sessions x WHERE x.tenant = p_tenant AND x."user" = p_user;
    GET DIAGNOSTICS gone = ROW_COUNT;
    DELETE FROM cloister.items x WHERE x.tenant = p_tenant AND x."user" = p_user;
    DELETE FROM cloister.leases x WHERE x.tenant = p_tenant AND x."user" = p_user;
    DELETE FROM cloister.records x WHERE x.tenant = p_tenant AND x."user" = p_user;
    DELETE FROM cloister.accounts x WHERE x.tenant = p_tenant AND x."user" = p_user;
    DELETE FROM cloister.charges x WHERE x.tenant = p_tenant AND x."user" = p_user;
    PERFORM cloister.unclaim(NULL), cloister.revoke_rows(p_tenant, NULL, NULL, p_user);
    DELETE FROM cloister.audit_owners x WHERE x.tenant = p_tenant AND x."user" = p_user;
    outcome := 'stored';
END $$;

CREATE FUNCTION cloister.forget(
    nonce bytea, p_tenant text, p_user text, p_session text, p_key bytea, p_holder text, p_sealed bytea, p_trace boolean,
    OUT echo bytea, OUT gone bigint
)
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM set_config('cloister.tenant', p_tenant, true), set_config('cloister.user', p_user, true);
    echo := nonce;
    IF p_trace THEN
        UPDATE cloister.records k SET sealed = ''
        WHERE k.tenant = p_tenant AND k."user" = p_user AND k.session = p_session AND k.key = p_key
          AND k.holder = p_holder AND k.sealed = p_sealed;
    ELSE
        DELETE FROM cloister.records k
        WHERE k.tenant = p_tenant AND k."user" = p_user AND k.session = p_session AND k.key = p_key
          AND k.holder = p_holder AND k.sealed = p_sealed;
    END IF;
    GET DIAGNOSTICS gone = ROW_COUNT;
END $$;

CREATE FUNCTION cloister.enrol(
    nonce bytea, p_new cloister.credentials, p_names json, p_expected text[], p_entries json,
    OUT echo bytea, OUT outcome text, OUT named text[]
)
LANGUAGE plpgsql AS $$
BEGIN
    echo := nonce;
    named := cloister.names(p_names);
    IF named <> p_expected THEN
        outcome := 'named';
        RETURN;
    END IF;
    outcome := cloister.enrol_row(p_new);
    IF outcome = 'stored' THEN
        PERFORM cloister.put(p_entries);
    END IF;
END $$;

CREATE FUNCTION cloister.revoke(
    nonce bytea, p_tenant text, p_kind text, p_credential text, p_user text,
    p_names json, p_expected text[], p_entries json,
    OUT echo bytea, OUT outcome text, OUT named text[], OUT gone bigint
)
LANGUAGE plpgsql AS $$
BEGIN
    echo := nonce;
    named := cloister.names(p_names);
    IF named <> p_expected THEN
        outcome := 'named';
        RETURN;
    END IF;
    outcome := 'nothing';
    gone := cloister.revoke_rows(p_tenant, p_kind, p_credential, p_user);
    IF gone > 0 THEN
        PERFORM cloister.put(p_entries);
        outcome := 'stored';
    END IF;
END $$;

CREATE FUNCTION cloister.record(
    nonce bytea, p_names json, p_expected text[], p_entries json, OUT echo bytea, OUT outcome text, OUT named text[]
)
LANGUAGE plpgsql AS $$
BEGIN
    echo := nonce;
    named := cloister.names(p_names);
    IF named <> p_expected THEN
        outcome := 'named';
        RETURN;
    END IF;
    PERFORM cloister.put(p_entries);
    outcome := 'stored';
END $$;

CREATE FUNCTION cloister.rewrap(
    nonce bytea, p_tenant text, p_user text, p_session text, old_wrapped bytea, old_carry bytea,
    p_wrapped bytea, p_carry bytea, OUT echo bytea, OUT changed bigint
)
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM set_config('cloister.tenant', p_tenant, true), set_config('cloister.user', p_user, true);
    echo := nonce;
    UPDATE cloister.sessions s SET wrapped = p_wrapped, carry = p_carry
    WHERE s.tenant = p_tenant AND s."user" = p_user AND s.session = p_session
      AND s.wrapped IS NOT DISTINCT FROM old_wrapped AND s.carry IS NOT DISTINCT FROM old_carry;
    GET DIAGNOSTICS changed = ROW_COUNT;
END $$;

-- Nobody runs any of it but those named here.

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA cloister FROM PUBLIC;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA cloister TO cloister_application;
REVOKE EXECUTE ON FUNCTION
    cloister.every_session, cloister.every_credential, cloister.reseal,
    cloister.audit_trail, cloister.audit_tail, cloister.audit_prune, cloister.audit_names
    FROM cloister_application;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA cloister TO cloister_lookup;
GRANT EXECUTE ON FUNCTION
    cloister.every_session, cloister.every_credential, cloister.reseal,
    cloister.audit_trail, cloister.audit_tail, cloister.audit_prune, cloister.audit_names
    TO cloister_operator;
GRANT CREATE ON SCHEMA cloister TO cloister_lookup; -- for as long as it takes to hand over what it owns
DO $$
DECLARE
    f regprocedure;
BEGIN
    FOR f IN SELECT p.oid::regprocedure FROM pg_proc p
             WHERE p.pronamespace = 'cloister'::regnamespace AND p.prosecdef LOOP
        EXECUTE format('ALTER FUNCTION %s OWNER TO cloister_lookup', f);
    END LOOP;
END $$;
REVOKE CREATE ON SCHEMA cloister FROM cloister_lookup;
